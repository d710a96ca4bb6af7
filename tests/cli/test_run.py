"""run: chat in the terminal, through a pipe and through a pseudo-terminal."""
import fcntl
import json
import os
import pty
import re
import select
import signal
import subprocess
import termios
import time

import pytest

from command import BINARY, ERROR, environment, millrace

LONG = ["--temperature", "0", "--max-tokens", "90000", "--threads", "1"]
FOOTER = r"\[\d+ tokens; first after \d+ ms, then [\d.]+ tokens/s"


def test_piped_lines_are_answered_in_turn(llama):
    result = millrace("run", llama, "--temperature", 0, "--max-tokens", 8, input="Hi\n\nAnd you?\n/exit\nnever\n")
    assert len(re.findall(FOOTER, result.stdout)) == 2
    assert "> " not in result.stdout.splitlines()[0]


def test_json_answers_one_a_line(llama):
    lines = millrace("run", llama, "--temperature", 0, "--max-tokens", 8, "--json", input="Hi\nHi\n").stdout.splitlines()
    first, second = map(json.loads, lines)
    assert first.keys() >= {"text", "finish_reason"}
    # The second answer has seen the first turn; after /clear it has not.
    again, fresh = map(json.loads, millrace("run", llama, "--temperature", 0, "--max-tokens", 8, "--json", input="Hi\n/clear\nHi\n").stdout.splitlines())
    assert again == fresh == first and second is not None


def test_a_system_message_changes_the_answer(llama):
    def answer(*args):
        return millrace("run", llama, "--temperature", 0, "--max-tokens", 12, "--json", *args, input="Hi\n").stdout
    assert answer() != answer("--system", "You are a pirate.")


def test_a_conversation_longer_than_the_context_is_said_and_survived(llama):
    result = millrace("run", llama, "--temperature", 0, "--max-tokens", 4, input="word " * 400 + "\nHi\n")
    assert "256" in result.stderr and len(re.findall(FOOTER, result.stdout)) == 1


def test_a_missing_model_is_an_error(tmp_path):
    assert "absent" in millrace("run", tmp_path / "absent", status=ERROR, input="Hi\n").stderr


class Terminal:
    """The command on a pseudo-terminal of its own, as a person has it."""

    def __init__(self, *args):
        self.master, slave = pty.openpty()

        def own_terminal():
            os.setsid()
            fcntl.ioctl(0, termios.TIOCSCTTY, 0)
        self.process = subprocess.Popen([BINARY, *args], stdin=slave, stdout=slave, stderr=slave, preexec_fn=own_terminal, env=environment(TERM="dumb"))
        os.close(slave)
        self.output = ""

    def type(self, text):
        os.write(self.master, text.encode())

    def wait_for(self, pattern, seconds=60):
        """Reads until the pattern is seen after what was seen before; gives the match."""
        deadline = time.monotonic() + seconds
        while True:
            if found := re.search(pattern, self.output, re.DOTALL):
                self.output = self.output[found.end():]
                return found
            left = deadline - time.monotonic()
            assert left > 0, f"{pattern!r} did not come; so far: {self.output[-1500:]!r}"
            if select.select([self.master], [], [], min(left, 0.5))[0]:
                try:
                    data = os.read(self.master, 1 << 16)
                except OSError:  # the other side is closed
                    data = b""
                assert data or re.search(pattern, self.output, re.DOTALL), f"the program ended; so far: {self.output[-1500:]!r}"
                self.output += data.decode(errors="replace")

    def end(self):
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()
        os.close(self.master)

    def exit_status(self):
        # Reads what is still written, so that the program cannot block on a full terminal.
        deadline = time.monotonic() + 30
        while self.process.poll() is None and time.monotonic() < deadline:
            if select.select([self.master], [], [], 0.1)[0]:
                try:
                    os.read(self.master, 1 << 16)
                except OSError:
                    break
        return self.process.wait(timeout=30)


@pytest.fixture
def terminal():
    opened = []

    def make(*args):
        opened.append(Terminal(*args))
        return opened[-1]
    yield make
    for one in opened:
        one.end()


def test_an_answer_streams_and_ctrl_c_stops_it_and_not_the_program(terminal, endless_model):
    chat = terminal("run", endless_model, *LONG)
    chat.wait_for(r"Ctrl-C stops an answer.*> ")
    chat.type("Hello\n")
    chat.wait_for(r"Hello\r\n.{20,}")  # text came while the answer, which takes long, is not finished
    assert "tokens; first after" not in chat.output
    begin = time.monotonic()
    chat.type("\x03")
    chat.wait_for(FOOTER + r"; stopped\]", seconds=20)
    assert time.monotonic() - begin < 20
    chat.wait_for(r"> ")
    # The program goes on: a further question is answered, and stopped, too.
    chat.type("Again\n")
    chat.wait_for(r"Again\r\n.{20,}")
    chat.type("\x03")
    chat.wait_for(FOOTER + r"; stopped\]")
    chat.wait_for(r"> ")
    chat.type("/exit\n")
    assert chat.exit_status() == 0


@pytest.mark.parametrize("key", ["\x03", "\x04"], ids=["Ctrl-C", "Ctrl-D"])
def test_at_the_prompt_it_leaves(terminal, llama, key):
    chat = terminal("run", llama, "--max-tokens", "4")
    chat.wait_for(r"> ")
    chat.type(key)
    assert chat.exit_status() == 0


def test_sigint_to_a_piped_run_stops_the_answer_only(endless_model):
    process = subprocess.Popen([BINARY, "run", endless_model, *LONG], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environment())
    try:
        process.stdin.write(b"Hello\n")
        process.stdin.flush()
        assert process.stdout.read1(100)  # the answer has begun
        process.send_signal(signal.SIGINT)
        output, errors = process.communicate(timeout=60)
        assert process.returncode == 0, errors
        assert b"; stopped]" in output
    finally:
        process.kill()
