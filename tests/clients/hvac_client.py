"""Takes hvac through what an application does with a Vault, against the socket VAULT_ADDR names.

Every check is one line, "ok NAME" or "FAILED NAME: reason". All replies are appended to the file
REPLIES; PostgreSQL is asked on port PGPORT.
"""

import os
import socket
import sys
import time

import hvac
import pg8000.native
import requests
import requests.adapters
import urllib3
from hvac import exceptions

LEASE_SECONDS = 20
SOON = 10.0


class UnixConnection(urllib3.connection.HTTPConnection):
    """HTTP over a Unix socket."""

    def __init__(self, path):
        super().__init__("localhost", timeout=30)
        self.path = path

    def connect(self):
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(self.timeout)
        self.sock.connect(self.path)


class UnixPool(urllib3.HTTPConnectionPool):
    """Connections that are kept open."""

    def __init__(self, path):
        super().__init__("localhost")
        self.path = path

    def _new_conn(self):
        return UnixConnection(self.path)


class UnixAdapter(requests.adapters.HTTPAdapter):
    """What hvac's documentation calls a custom adapter; requests asks it for every connection."""

    def __init__(self, path):
        super().__init__()
        self.pool = UnixPool(path)

    def get_connection_with_tls_context(self, request, verify, proxies=None, cert=None):
        return self.pool


class Application:
    """A client and the credential it holds; each check is a method."""

    def __init__(self, client):
        self.client = client
        self.kv1 = client.secrets.kv.v1
        self.kv2 = client.secrets.kv.v2
        self.credential = None

    def sees_health(self):
        """health: initialised, unsealed, active"""
        health = self.client.sys.read_health_status(method="GET")
        assert health["initialized"] and not health["sealed"] and not health["standby"], health
        assert self.client.sys.is_initialized() and not self.client.sys.is_sealed()

    def sees_itself(self):
        """token lookup-self names the caller and no token"""
        data = self.client.auth.token.lookup_self()["data"]
        assert data["display_name"].startswith("uid:"), data
        assert data["id"] == "" and data["accessor"] == ""
        assert self.client.is_authenticated()

    def reads_kv1(self):
        """KV 1 through the client's helper"""
        read = self.kv1.read_secret("shop/web", mount_point="kv")
        assert read["data"] == {"colour": "blue"}, read

    def reads_kv2(self):
        """KV 2, newest and pinned version, through the client's helper"""
        for version, colour in ((None, "green"), (1, "red"), (2, "green")):
            read = self.kv2.read_secret_version(
                "shop/web", version=version, mount_point="secret", raise_on_deleted_version=True
            )
            assert read["data"]["data"]["colour"] == colour, read
            assert read["data"]["metadata"]["version"] == (version or 2), read

    def misses_secrets(self):
        """404 is the client's own not-found error"""
        refused(exceptions.InvalidPath, lambda: self.kv1.read_secret("shop/missing", "kv"))
        read = lambda version: self.kv2.read_secret_version(
            "shop/web" if version else "shop/missing",
            version=version,
            mount_point="secret",
            raise_on_deleted_version=True,
        )
        refused(exceptions.InvalidPath, lambda: read(None))
        refused(exceptions.InvalidPath, lambda: read(9))
        assert self.client.read("kv/shop/missing") is None

    def is_denied(self):
        """403 is the client's own response error"""
        denied = (
            lambda: self.kv1.read_secret("private/web", mount_point="kv"),
            lambda: self.kv2.read_secret_version(
                "private/web", mount_point="secret", raise_on_deleted_version=True
            ),
            lambda: self.client.secrets.database.generate_credentials("private"),
            lambda: self.client.sys.list_mounted_secrets_engines(),
        )
        for call in denied:
            assert "permission denied" in str(refused(exceptions.Forbidden, call))

    def cannot_write(self):
        """a write is refused with 405"""
        write = lambda: self.kv1.create_or_update_secret(
            "shop/web", {"colour": "black"}, method="PUT", mount_point="kv"
        )
        # hvac has no class for this status.
        assert "only reads" in str(refused(exceptions.UnexpectedError, write))

    def reads_credential(self):
        """a database credential logs in to PostgreSQL"""
        self.credential = self.client.secrets.database.generate_credentials("shop")
        assert self.credential["lease_id"].startswith("database/creds/shop/")
        assert 0 < self.credential["lease_duration"] <= LEASE_SECONDS
        assert self.credential["renewable"]
        log_in(self.credential["data"])

    def reads_it_again(self):
        """a repeated read returns the same credential"""
        again = self.client.secrets.database.generate_credentials("shop")
        assert again["data"] == self.credential["data"]
        assert again["lease_id"] == self.credential["lease_id"]

    def renews_lease(self):
        """lookup and renewal of the local lease"""
        lease = self.credential["lease_id"]
        found = self.client.sys.read_lease(lease)["data"]
        assert found["id"] == lease and found["issue_time"], found
        renewed = self.client.sys.renew_lease(lease, increment=3600)
        assert renewed["lease_id"] == lease and renewed["renewable"], renewed
        assert 0 < renewed["lease_duration"] <= LEASE_SECONDS, renewed

    def knows_no_other_lease(self):
        """an unknown lease is refused with 400"""
        other = "database/creds/shop/0123456789abcdef"
        refused(exceptions.InvalidRequest, lambda: self.client.sys.read_lease(other))
        refused(exceptions.InvalidRequest, lambda: self.client.sys.renew_lease(other))

    def revokes_lease(self):
        """revocation of the local lease removes the PostgreSQL role"""
        lease = self.credential["lease_id"]
        self.client.sys.revoke_lease(lease)
        refused(exceptions.InvalidRequest, lambda: self.client.sys.read_lease(lease))
        deadline = time.monotonic() + SOON
        while time.monotonic() < deadline:
            try:
                log_in(self.credential["data"])
            except pg8000.exceptions.DatabaseError:
                return
            time.sleep(0.05)
        raise AssertionError("the PostgreSQL role still logs in")

    CHECKS = (
        sees_health,
        sees_itself,
        reads_kv1,
        reads_kv2,
        misses_secrets,
        is_denied,
        cannot_write,
        reads_credential,
        reads_it_again,
        renews_lease,
        knows_no_other_lease,
        revokes_lease,
    )


def refused(kind, call):
    """The error of a call that must raise exactly this class."""
    try:
        answer = call()
    except exceptions.VaultError as error:
        assert type(error) is kind, f"{type(error).__name__}: {error}"
        return error
    raise AssertionError(f"no {kind.__name__}, but {answer}")


def log_in(data):
    """Opens a connection with the credential."""
    pg8000.native.Connection(
        data["username"],
        host="127.0.0.1",
        port=int(os.environ["PGPORT"]),
        database="postgres",
        password=data["password"],
    ).close()


def record(replies):
    """A hook of requests that keeps every reply, headers included."""

    def keep(reply, *_, **__):
        replies.write(f"{reply.status_code} {dict(reply.headers)}\n{reply.text}\n")
        replies.flush()

    return keep


def main():
    path = os.environ["VAULT_ADDR"].removeprefix("unix://")
    session = requests.Session()
    session.trust_env = False
    session.mount("http://localhost", UnixAdapter(path))
    good = True
    with open(os.environ["REPLIES"], "a", encoding="utf-8") as replies:
        session.hooks["response"].append(record(replies))
        token = os.environ["VAULT_TOKEN"]
        application = Application(hvac.Client("http://localhost", token=token, session=session))
        for check in Application.CHECKS:
            try:
                check(application)
                print("ok", check.__doc__, flush=True)
            except Exception as error:  # Whatever it is, it is this check's result.
                good = False
                print(f"FAILED {check.__doc__}: {type(error).__name__}: {error}", flush=True)
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
