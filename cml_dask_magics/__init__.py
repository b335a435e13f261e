"""Dask clusters on Cloudera (CML) sessions, from a notebook: ``%load_ext cml_dask_magics``."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from IPython.core.interactiveshell import InteractiveShell

    from cml_dask_magics.cluster.cluster import CMLCluster
    from cml_dask_magics.registry.certificates import client_security

__version__ = "0.1.0"
__all__ = ["CMLCluster", "__version__", "client_security", "load_ipython_extension", "unload_ipython_extension"]


def load_ipython_extension(shell: InteractiveShell) -> None:
    """Register the magics; IPython calls this on ``%load_ext cml_dask_magics``."""
    from cml_dask_magics.magics import magics

    magics.register(shell)


def unload_ipython_extension(shell: InteractiveShell) -> None:
    """Take the magics away again; no cluster is stopped. IPython calls this on ``%unload_ext``."""
    from cml_dask_magics.magics import magics

    magics.unregister(shell)


def _show(cluster: CMLCluster) -> None:
    """Show a cluster that is a cell's value."""
    from cml_dask_magics.magics.magics import show_cluster  # not before: it imports IPython

    show_cluster(cluster)


def __getattr__(name: str) -> Any:
    # Lazily, so that loading the extension does not import distributed (0.3 s).
    if name == "CMLCluster":
        from cml_dask_magics.cluster.cluster import CMLCluster

        CMLCluster.shown_by = _show
        return CMLCluster
    if name == "client_security":
        from cml_dask_magics.registry.certificates import client_security

        return client_security
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
