"""What every engine under comparison offers, and how a peer's own Python environment is made."""
import os
import subprocess
import sys

from . import BUILD


class Unavailable(Exception):
    """Why a peer, a model on it or one workload cannot be measured here; the table shows the reason."""


class Peer:
    """One engine. `name` is what --peers takes; `title` what tables show."""
    name = title = ""
    licence = ""
    only_models = None  # names of models; None: every model

    def install(self):
        """Installs what is missing under build/peers. Raises Unavailable with the reason where that fails."""

    def identify(self, worker, model_path, machine):
        """{"version", "flags", "isa"} as texts. Raises Unavailable where the build is not for this CPU."""
        raise NotImplementedError

    def prepare(self, model, model_path):
        """The path that `measure` takes: the file itself, or what this engine converts it to."""
        return model_path

    def settings(self, workload, threads):
        """{option: [values]}: what is swept for the workload, the first value of each being the start."""
        return {}

    def measure(self, worker, path, workload, threads, setting, timeout_s):
        """One measurement: tokens per second, or seconds for a start."""
        raise NotImplementedError


def quiet_run(command, log, **options):
    """Runs a step of an installation, its output in a log file. Raises Unavailable with the log's last line where it fails."""
    os.makedirs(os.path.dirname(log), exist_ok=True)
    with open(log, "ab") as file:
        done = subprocess.run([str(word) for word in command], stdout=file, stderr=subprocess.STDOUT, **options)
    if done.returncode != 0:
        with open(log, errors="replace") as file:
            said = [line.strip() for line in file if line.strip()]
        raise Unavailable(f"{os.path.basename(str(command[0]))} failed: {said[-1][:200] if said else done.returncode} (log: {os.path.relpath(log)})")


def make_venv(name, requirements, alone=(), remove=()):
    """A virtual environment of its own with pinned packages; gives its python. Made once: a note in it says what it was made for.

    `alone`: packages without their dependencies. `remove`: packages that came as dependencies and are taken away again.
    """
    directory = os.path.join(BUILD, name)
    python, note, wanted = os.path.join(directory, "bin", "python"), os.path.join(directory, "requirements.txt"), "\n".join([*requirements, *alone]) + "\n"
    if os.path.exists(note) and open(note).read() == wanted:
        return python
    print(f"installing {', '.join(requirements)} into {os.path.relpath(directory)}", file=sys.stderr)
    log = os.path.join(BUILD, f"{name}.install.log")
    quiet_run([sys.executable, "-m", "venv", directory], log)
    quiet_run([python, "-m", "pip", "install", "-q", "--disable-pip-version-check", *requirements], log)
    if alone:
        quiet_run([python, "-m", "pip", "install", "-q", "--disable-pip-version-check", "--no-deps", *alone], log)
    if remove:
        quiet_run([python, "-m", "pip", "uninstall", "-q", "-y", *remove], log)
    with open(note, "w") as file:
        file.write(wanted)
    return python


def telling_line(text):
    """The line that says why, as ": line": the first with an assertion that failed, else the last."""
    said = [line.strip() for line in text.splitlines() if line.strip()]
    failed = [line[line.index("GGML_ASSERT"):] for line in said if "GGML_ASSERT" in line]
    return f": {(failed or said[-1:])[0][:200]}" if said else ""


def output_of(result, what):
    """The standard output of a worker's job, or Unavailable with what it said last."""
    if result["timed_out"]:
        raise Unavailable(f"{what} did not end within {result['seconds']:.0f} s")
    if result["status"] != 0:
        raise Unavailable(f"{what} ended with status {result['status']}" + telling_line(result["stderr"]))
    return result["stdout"]
