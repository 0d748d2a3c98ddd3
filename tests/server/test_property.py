"""Random sequences of everything a client can do, with crashes, against a model that knows every byte."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass, field

import pytest
from hypothesis import HealthCheck, Phase, settings, strategies as st
from hypothesis.stateful import (
    Bundle,
    RuleBasedStateMachine,
    consumes,
    initialize,
    invariant,
    multiple,
    precondition,
    rule,
    run_state_machine_as_test,
)

from tests.support.harness import ServerProcess
from tests.support.wire.connection import Connection
from tests.support.wire.messages import KIBI, Answer, checksum, chunk, creation_headers, path_of, payload
from tests.support.wire.requests import assert_content, head, patch, request, start_patch

LARGEST = 1_400_000  # more than one of the blocks that bodies are received in
REFERENCE = payload(LARGEST + 256 * KIBI)
GARBAGE = bytes(255 - byte for byte in REFERENCE)  # differs from what belongs there at every place
SIZES = st.one_of(st.integers(0, 40), st.integers(0, 70_000), st.integers(0, LARGEST))
FRACTIONS = st.floats(0, 1)


@dataclass(eq=False)
class Model:
    """The model of one upload."""

    path: str
    content: bytes  # what the client wants to be stored in the end
    length: int | None  # as declared
    headers: dict[str, str] = field(default_factory=dict)
    acknowledged: int = 0  # the server promised so much
    sent: int = 0  # so much may be stored: the end of what a valid request carried

    @property
    def is_complete(self) -> bool:
        return self.length is not None and self.acknowledged == self.length

    @property
    def is_final(self) -> bool:
        return self.headers.get("Upload-Concat", "").startswith("final")

    @property
    def missing(self) -> int:
        return len(self.content) - self.acknowledged

    def part(self, size: int) -> bytes:
        return self.content[self.acknowledged : self.acknowledged + size]

    def is_at(self, offset: int) -> None:
        self.acknowledged = self.sent = offset


class Uploads(RuleBasedStateMachine):
    """One server for all runs: uploads do not know of each other."""

    server: ServerProcess
    uploads = Bundle("uploads")
    partials = Bundle("partials")

    @initialize()
    def begin(self) -> None:
        self.known: list[Model] = []
        self.ended: list[str] = []
        self.crashes = 0

    @property
    def port(self) -> int:
        return self.server.port

    # Creating.

    def create(
        self, content: bytes, *, deferred: bool = False, first: bytes = b"", headers: dict[str, str] | None = None
    ) -> Model:
        length = None if deferred else len(content)
        made = request(self.port, "POST", "/files", creation_headers(length, first) | (headers or {}), first)
        assert (made.status, made.offset) == (201, len(first)), made
        model = Model(path_of(made), content, length, headers or {})
        model.is_at(len(first))
        self.known.append(model)
        return model

    @rule(target=uploads, size=SIZES, start=st.integers(0, 256 * KIBI))
    def create_plain(self, size: int, start: int) -> Model:
        return self.create(
            REFERENCE[start : start + size], headers={"Upload-Metadata": f"start {'QUJD' * (start % 5)}"}
        )

    @rule(target=uploads, size=SIZES)
    def create_deferred(self, size: int) -> Model:
        return self.create(REFERENCE[:size], deferred=True)

    @rule(target=uploads, size=SIZES, share=FRACTIONS, deferred=st.booleans())
    def create_with_upload(self, size: int, share: float, deferred: bool) -> Model:
        content = REFERENCE[:size]
        return self.create(content, deferred=deferred, first=content[: int(size * share)])

    @rule(target=partials, sizes=st.lists(st.integers(0, 300_000), min_size=1, max_size=3), whole=st.booleans())
    def create_partials(self, sizes: list[int], whole: bool) -> object:
        """`multiple` values: the partial uploads, with all their bytes or with none."""
        contents = [REFERENCE[size // 3 : size // 3 + size] for size in sizes]
        header = {"Upload-Concat": "partial"}
        return multiple(
            *(self.create(content, first=content if whole else b"", headers=header) for content in contents)
        )

    # Writing.

    @rule(model=st.one_of(uploads, partials), share=FRACTIONS, verified=st.booleans(), chunks=st.integers(0, 3))
    def write(self, model: Model, share: float, verified: bool, chunks: int) -> None:
        """A PATCH at the right offset; no chunks is a body of declared size."""
        if model not in self.known or model.missing == 0:
            return
        self.settle(model)
        part = model.part(max(1, int(model.missing * share)))
        headers = checksum(part, "sha256") if verified else {}
        if chunks == 0:
            answer = patch(self.port, model.path, model.acknowledged, part, headers)
        else:
            step = len(part) // chunks + 1
            body = b"".join(chunk(part[start : start + step]) for start in range(0, len(part), step)) + chunk(b"")
            with start_patch(self.port, model.path, model.acknowledged, None, headers) as connection:
                connection.send(body)
                answer = connection.answer()
        end = model.acknowledged + len(part)
        assert (answer.status, answer.offset) == (204, end), answer
        model.is_at(end)

    @rule(
        model=st.one_of(uploads, partials), share=FRACTIONS, cut=FRACTIONS, reset=st.booleans(), verified=st.booleans()
    )
    def break_off(self, model: Model, share: float, cut: float, reset: bool, verified: bool) -> None:
        """A PATCH whose connection ends after some of its bytes."""
        if model not in self.known or model.missing == 0:
            return
        self.settle(model)
        start = model.acknowledged
        part = model.part(max(1, int(model.missing * share)))
        arrived = int((len(part) - 1) * cut)
        with start_patch(self.port, model.path, start, len(part), checksum(part) if verified else {}) as connection:
            connection.send(part[:arrived])
            if reset:
                connection.reset()
            else:
                connection.finish_sending()
                answer = connection.answer_or_closed()  # once the server has dealt with it
                assert answer is None or answer.status >= 400, answer
        model.sent = start if verified else start + arrived
        if not reset:
            model.acknowledged = model.sent  # nothing of it may be lost
        self.look(model)

    @rule(model=uploads, share=FRACTIONS)
    def send_with_wrong_checksum(self, model: Model, share: float) -> None:
        if model not in self.known or model.missing == 0:
            return
        self.settle(model)
        part = model.part(max(1, int(model.missing * share)))
        wrong = GARBAGE[: len(part)]
        answer = patch(self.port, model.path, model.acknowledged, wrong, checksum(part))
        assert answer.status == (460 if wrong != part else 204), answer
        assert self.look(model).offset == model.acknowledged

    @rule(model=st.one_of(uploads, partials), offset=SIZES, size=st.integers(1, 70_000))
    def send_at_wrong_offset(self, model: Model, offset: int, size: int) -> None:
        if model not in self.known:
            return
        self.settle(model)
        if offset == model.acknowledged:
            return
        answer = patch(self.port, model.path, offset, GARBAGE[:size])
        if model.is_final:
            assert answer.status == 403, answer
        else:
            assert (answer.status, answer.offset) == (409, model.acknowledged), answer

    @rule(model=st.one_of(uploads, partials), excess=st.integers(1, 100_000))
    def send_too_much(self, model: Model, excess: int) -> None:
        if model not in self.known or model.length is None:
            return
        self.settle(model)
        body = GARBAGE[: model.length - model.acknowledged + excess]
        answer = patch(self.port, model.path, model.acknowledged, body)
        assert answer.status == (403 if model.is_final else 413), answer
        assert self.look(model).offset == model.acknowledged

    @rule(model=uploads, share=FRACTIONS)
    def declare_length(self, model: Model, share: float) -> None:
        """The length of a deferred upload comes with some of its bytes; another length is refused ever after."""
        if model not in self.known:
            return
        self.settle(model)
        if model.length is None:
            if model.acknowledged:
                less = {"Upload-Length": str(model.acknowledged - 1)}
                assert patch(self.port, model.path, model.acknowledged, b"", less).status == 400
            part = model.part(int(model.missing * share))
            headers = {"Upload-Length": str(len(model.content))}
            answer = patch(self.port, model.path, model.acknowledged, part, headers)
            assert (answer.status, answer.offset) == (204, model.acknowledged + len(part)), answer
            model.length = len(model.content)
            model.is_at(answer.offset)
        elif not model.is_complete:
            other = {"Upload-Length": str(model.length + 1)}
            assert patch(self.port, model.path, model.acknowledged, b"", other).status == 400

    # Putting together.

    @rule(target=uploads, models=st.lists(partials, min_size=1, max_size=4))
    def concatenate(self, models: list[Model]) -> object:
        models = [model for model in models if model in self.known]
        if not models:
            return multiple()
        for model in models:
            self.settle(model)
        headers = {"Upload-Concat": "final;" + " ".join(model.path for model in models)}
        made = request(self.port, "POST", "/files", headers)
        if not all(model.is_complete for model in models):
            assert made.status == 400, made
            return multiple()
        content = b"".join(model.content for model in models)
        assert made.status == 201, made
        known = [final for final in self.known if final.path == path_of(made)]  # the same request gives the same one
        if known:
            return known[0]
        if path_of(made) in self.ended:  # terminated, and made once more
            self.ended.remove(path_of(made))
        final = Model(path_of(made), content, len(content), headers)
        final.is_at(len(content))
        self.known.append(final)
        assert_content(self.port, final.path, content)
        return final

    # Ending.

    @rule(model=consumes(uploads))
    def terminate(self, model: Model) -> None:
        if model not in self.known:
            return
        assert request(self.port, "DELETE", model.path).status == 204
        self.known.remove(model)
        self.ended.append(model.path)

    @precondition(lambda self: self.crashes < 1 and len(self.known) > 1)
    @rule(interrupted=st.lists(st.tuples(st.one_of(uploads, partials), FRACTIONS), max_size=2))
    def crash(self, interrupted: list[tuple[Model, float]]) -> None:
        """kill -9 while some PATCHes are under way."""
        self.crashes += 1
        connections: list[Connection] = []
        try:
            for model, share in dict(interrupted).items():
                if model in self.known and model.missing:
                    self.settle(model)
                    connection = start_patch(self.port, model.path, model.acknowledged, model.missing)
                    connections.append(connection)
                    part = model.part(int(model.missing * share))
                    connection.send(part)
                    model.sent = model.acknowledged + len(part)
            self.server.restart()
        finally:
            for connection in connections:
                connection.close()

    # Looking.

    @rule(model=uploads)
    def read(self, model: Model) -> None:
        if model not in self.known:
            return
        self.settle(model)
        if model.is_complete:
            assert_content(self.port, model.path, model.content)
        else:
            assert request(self.port, "GET", model.path).status == 404

    def look(self, model: Model) -> Answer:
        """HEAD: the offset lies between what was acknowledged and what was sent, and is acknowledged now."""
        answer = head(self.port, model.path)
        assert answer.status == 200, answer
        assert model.acknowledged <= answer.offset <= model.sent
        model.acknowledged = answer.offset
        length = {"upload-defer-length": "1"} if model.length is None else {"upload-length": str(model.length)}
        told = {name: value for name, value in answer.headers.items() if name in ("upload-defer-length", *length)}
        assert told == length
        for name, value in model.headers.items():
            assert answer.headers[name.lower()] == value.strip()
        return answer

    def settle(self, model: Model) -> None:
        """The offset as a client learns it before it writes; nothing but that client changes it then."""
        if model.acknowledged != model.sent:
            model.is_at(self.look(model).offset)

    @invariant()
    def every_offset_is_true(self) -> None:
        for model in self.known:
            self.look(model)
        for path in self.ended:
            assert head(self.port, path).status == 404

    def teardown(self) -> None:
        for model in getattr(self, "known", []):
            self.settle(model)
            if not model.is_complete:
                headers = {"Upload-Length": str(len(model.content))} if model.length is None else {}
                rest = model.content[model.acknowledged :]
                answer = patch(self.port, model.path, model.acknowledged, rest, headers)
                assert (answer.status, answer.offset) == (204, len(model.content)), answer
            assert_content(self.port, model.path, model.content)


@pytest.fixture(scope="module")
def crashing_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    with ServerProcess(tmp_path_factory.mktemp("property") / "uploads", log_level="warning") as server:
        yield server


@pytest.mark.long
def test_the_server_does_what_the_model_does(crashing_server: ServerProcess) -> None:
    Uploads.server = crashing_server
    run_state_machine_as_test(
        Uploads,
        settings=settings(
            max_examples=50,
            stateful_step_count=25,
            deadline=None,
            derandomize=bool(os.environ.get("CI")),
            database=None,
            phases=[Phase.generate],  # against a real server with crashes, a smaller example takes too long to find
            print_blob=False,
            report_multiple_bugs=False,
            suppress_health_check=list(HealthCheck),
        ),
    )
    assert "Traceback" not in "".join(crashing_server.log), "".join(crashing_server.log)
