"""Who may talk to a cluster: whoever holds its certificate, and nobody else."""

import asyncio
import stat

import pytest
from distributed import Client, Scheduler
from distributed.security import Security

from cml_dask_magics.registry.certificates import read_security, write_certificates
from cml_dask_magics.registry.files import write_private

pytestmark = pytest.mark.dask


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    made = []
    for name in ("ours", "theirs"):
        folder = tmp_path_factory.mktemp(name)
        write_certificates(folder)
        made.append(folder)
    return made


def test_only_the_owner_reads_the_key(folders):
    files = sorted(folders[0].iterdir())
    assert [path.name for path in files] == ["ca.pem", "cert.pem", "key.pem"]
    assert [stat.S_IMODE(path.stat().st_mode) for path in files] == [0o600] * 3
    assert "PRIVATE KEY" in (folders[0] / "key.pem").read_text()
    assert "PRIVATE KEY" not in (folders[0] / "ca.pem").read_text()


def test_no_two_clusters_share_a_key(folders):
    ours, theirs = folders
    assert (ours / "key.pem").read_text() != (theirs / "key.pem").read_text()
    assert (ours / "ca.pem").read_text() != (theirs / "ca.pem").read_text()


def test_no_secret_shows_where_the_security_is_printed(folders):
    assert "PRIVATE KEY" not in repr(read_security(folders[0], tls=True))


async def identity(address, security):
    async with Client(address, security=security, asynchronous=True, timeout="3s") as client:
        return await client.scheduler.identity()


async def against(folder, address_of, security):
    """What a client with `security` gets from a scheduler that runs as the cluster of `folder`."""
    scheduler_security = Security(
        require_encryption=True,
        tls_ca_file=str(folder / "ca.pem"),
        tls_scheduler_cert=str(folder / "cert.pem"),
        tls_scheduler_key=str(folder / "key.pem"),
    )
    async with Scheduler(
        host="127.0.0.1", port=0, protocol="tls", security=scheduler_security, dashboard=False, dashboard_address=":0"
    ) as scheduler:
        return await identity(address_of(scheduler.address), security)


def test_the_clusters_own_certificate_is_let_in(folders):
    answer = asyncio.run(against(folders[0], str, read_security(folders[0], tls=True)))
    assert answer["address"].startswith("tls://127.0.0.1:")


def test_another_clusters_certificate_is_refused(folders):
    with pytest.raises(OSError):
        asyncio.run(against(folders[0], str, read_security(folders[1], tls=True)))


def test_a_client_without_a_certificate_is_refused(folders):
    plain = read_security(folders[0], tls=False)
    with pytest.raises(OSError):
        asyncio.run(against(folders[0], lambda address: address.replace("tls://", "tcp://"), plain))


def test_a_client_never_falls_back_to_talking_in_the_open(folders):
    with pytest.raises(RuntimeError, match="encrypt"):
        asyncio.run(
            against(
                folders[0], lambda address: address.replace("tls://", "tcp://"), read_security(folders[0], tls=True)
            )
        )


def test_a_file_is_written_whole_or_not_at_all(tmp_path):
    path = tmp_path / "key.pem"
    write_private(path, "old")
    with pytest.raises(UnicodeEncodeError):
        write_private(path, "half\ud800")
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]
