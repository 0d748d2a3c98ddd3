"""Cost of authentication for a POST and a PATCH of 1 KiB (`python -m bench.authentication`).

Servers with and without authentication have their turns in each of many short rounds; every client sends the same
token again, as clients do. CPU is that of the server, without syncs. One more row sends the signed token to the server
without authentication, which tells the cost of the longer request. The last column is the median of the ratios within
the rounds, which a machine that is busy in turns disturbs least. `--connections` requests are under way at a time,
`--directory DIR` is the place of the uploads.
"""

import argparse
import contextlib
import hashlib
import random
import sys
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from statistics import median

from bench.client import CONTENT_TYPE, METADATA, Script, build, location_path, run_scripts
from bench.growth import cpu_seconds
from bench.recipes import WORK, ours
from bench.report import table
from bench.servers import Target, running
from bench.workloads import SMALL_BYTES
from tests.auth.issuer import SigningKey, claims_of

ROUNDS = 200
PAIRS = 25
BODY = bytes(SMALL_BYTES)
API_TOKEN = "tus_a-token-that-only-a-benchmark-knows"


@dataclass(frozen=True, slots=True)
class Client:
    """A client of one of the servers, and the fields that its requests have."""

    target: Target
    fields: Mapping[str, str]


def bearer(token: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {token}"}


def pair(client: Client) -> Script:
    creation = {"Upload-Length": str(SMALL_BYTES), "Upload-Metadata": METADATA, **client.fields}
    created = yield build("POST", client.target.creation_path, creation)
    path = location_path(created.expect(201, "a small creation"))
    answer = yield build("PATCH", path, {"Upload-Offset": "0", **CONTENT_TYPE, **client.fields}, BODY)
    answer.expect(204, "a small PATCH")


def pair_cost(client: Client, connections: int) -> float:
    """Return the milliseconds of CPU time for a pair, as of a server that is never idle."""
    # Files with tokens and keys are looked at once a second: by a request that is not counted, after each pause.
    run_scripts(client.target.port, iter([pair(client)]), 1)
    before = cpu_seconds(client.target)
    run_scripts(client.target.port, (pair(client) for _ in range(PAIRS)), connections)
    return (cpu_seconds(client.target) - before) / PAIRS * 1e3


@contextlib.contextmanager
def clients(home: Path) -> Iterator[dict[str, Client]]:
    """Run the servers; yield a client for each row, the first without authentication."""
    rsa, elliptic = SigningKey("RS256"), SigningKey("ES256")
    files = {"rsa.pem": rsa.pem, "ec.pem": elliptic.pem}
    files["tokens"] = f"bench:{hashlib.sha256(API_TOKEN.encode()).hexdigest()}\n".encode()
    for name, content in files.items():
        (home / name).write_bytes(content)
    signed = rsa.sign(claims_of())
    with contextlib.ExitStack() as stack:

        def server(name: str, *arguments: str) -> Target:
            return stack.enter_context(running(ours(name, "--durability", "never", *arguments), home))

        free = server("free")
        yield {
            "without": Client(free, {}),
            "without, RS256 token sent": Client(free, bearer(signed)),
            "API token": Client(server("api", "--api-tokens-file", str(home / "tokens")), bearer(API_TOKEN)),
            "JWT, RS256": Client(server("rsa", "--jwt-key-file", str(home / "rsa.pem")), bearer(signed)),
            "JWT, ES256": Client(
                server("ec", "--jwt-key-file", str(home / "ec.pem")), bearer(elliptic.sign(claims_of()))
            ),
        }


def measure(home: Path, rounds: int, connections: int) -> dict[str, list[float]]:
    """Return the milliseconds of each round by the name of the row."""
    with clients(home) as measured:
        for client in measured.values():  # code that runs for the first time, and the verification of the token
            pair_cost(client, connections)
        costs: dict[str, list[float]] = {name: [] for name in measured}
        for _ in range(rounds):
            for name in random.sample(list(measured), len(measured)):
                costs[name].append(pair_cost(measured[name], connections))
        return costs


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--directory", type=Path, default=WORK, help="place of the uploads")
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    parser.add_argument("--connections", type=int, default=1, help="requests under way at a time (default 1)")
    arguments = parser.parse_args()
    arguments.directory.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="authentication-", dir=arguments.directory) as name:
        costs = measure(Path(name), arguments.rounds, arguments.connections)
    base = costs["without"]
    rows = [["", "CPU ms, best", "of that without", "CPU ms, median", "of that without", "median of the rounds"]]
    for kind, found in costs.items():
        best, middle = min(found), median(found)
        ratios = [cost / free for cost, free in zip(found, base, strict=True)]
        of_base = (best / min(base), middle / median(base), median(ratios))
        cells = [f"{best:.3f}", f"{of_base[0]:.2f}", f"{middle:.3f}", f"{of_base[1]:.2f}", f"{of_base[2]:.2f}"]
        rows.append([kind, *cells])
    sys.stdout.write("\n".join(table(rows)) + "\n")


if __name__ == "__main__":
    main()
