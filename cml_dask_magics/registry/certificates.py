"""TLS certificates for one cluster: only its own scheduler, workers and clients can connect to each other."""

from __future__ import annotations

import os
from collections.abc import Mapping
from datetime import datetime, timedelta, timezone
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID
from distributed.security import Security

from cml_dask_magics.model.settings import state_directory
from cml_dask_magics.registry.files import open_private, write_private
from cml_dask_magics.registry.liveness import scheduler_address
from cml_dask_magics.registry.registry import Registry
from cml_dask_magics.registry.run_folder import CERTIFICATES, uses_tls

_FILES = dict(zip(("tls_ca_file", "tls_client_cert", "tls_client_key"), CERTIFICATES, strict=True))


def write_certificates(folder: Path) -> None:
    """Make a key and a certificate for one cluster and write them, mode 0600, into its run folder.

    Other users' sessions share the network. Both sides must show the certificate, so who cannot read the folder can
    neither connect nor read the traffic.
    """
    # Like those of `distributed.Security.temporary`, whose RSA key takes 40 to 400 ms to make; this one takes 1 ms.
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "dask-internal")])
    now = datetime.now(timezone.utc)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .add_extension(x509.SubjectAlternativeName([x509.DNSName("dask-internal")]), critical=False)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(days=1))  # another machine's clock may be late
        .not_valid_after(now + timedelta(days=365))
        .sign(key, hashes.SHA256())
        .public_bytes(serialization.Encoding.PEM)
    )
    write_private(folder / _FILES["tls_ca_file"], certificate.decode())
    write_private(folder / _FILES["tls_client_cert"], certificate.decode())
    plain = (serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    write_private(folder / _FILES["tls_client_key"], key.private_bytes(*plain).decode())


def read_security(folder: Path, tls: bool) -> Security:
    """What a client needs to connect to the cluster with this run folder; without `tls` it uses plain ``tcp://``.

    Raises
    ------
    RuntimeError
        If a certificate cannot be read, or may be another user's.
    """
    if not tls:
        return Security(require_encryption=False)
    paths = {attribute: folder / filename for attribute, filename in _FILES.items()}
    for path in paths.values():
        try:
            os.close(open_private(path))
        except OSError as error:
            raise RuntimeError(
                f"nothing connects to this cluster, because its certificate {path} cannot be used: {error.strerror}"
            ) from None
    return Security(require_encryption=True, **{attribute: str(path) for attribute, path in paths.items()})


def client_security(info: Mapping[str, str]) -> Security | None:
    """What a client needs that has only a scheduler's address, as in the code that JupyterLab's Dask side bar writes.

    For ``distributed.client.security-loader`` in Dask's configuration.

    Parameters
    ----------
    info : mapping
        Its ``address``.

    Returns
    -------
    Security or None
        None if no cluster on record has that address.
    """
    registry = Registry(state_directory())
    for name in registry.names():
        try:
            record = registry.read(name)
        except RuntimeError:  # cannot be read
            continue
        if record is not None:
            run = registry.run_folder(record)
            if scheduler_address(record, run) == info["address"]:
                return read_security(run, uses_tls(record, run))
    return None
