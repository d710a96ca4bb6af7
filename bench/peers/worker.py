"""Runs the measured processes.

A worker is this file run as a program: it reads jobs as JSON lines, runs each as a process of its own, and answers with a JSON line.
BENCH_WRAPPER, a command such as `taskset -c 0,1` or `numactl -N 0`, goes before the worker, so that everything that is measured
inherits it. A worker ends after BENCH_TURN_SECONDS and another follows: on a machine that several people share, a wrapper that waits
for the machine then gets it for one turn at a time. Without the variable one worker does it all.

Every answer says what share of the usable CPUs went to others meanwhile (`others`, stolen time included): what disturbed a measurement.
"""
import json
import os
import resource
import select
import shlex
import signal
import subprocess
import sys
import time


def busy_s(text, cpus):
    """Seconds of work, stolen time included, of those CPUs in the text of /proc/stat."""
    total = 0
    for line in text.splitlines():
        words = line.split()
        if words and words[0].startswith("cpu") and words[0][3:].isdigit() and int(words[0][3:]) in cpus:
            user, nice, system, _, _, irq, soft_irq, steal = map(int, words[1:9])
            total += user + nice + system + irq + soft_irq + steal
    return total / os.sysconf("SC_CLK_TCK")


def machine_and_children_s():
    with open("/proc/stat") as file:
        machine = busy_s(file.read(), os.sched_getaffinity(0))
    children = resource.getrusage(resource.RUSAGE_CHILDREN)
    return machine, children.ru_utime + children.ru_stime


def wait_until_quiet(share, wait_s, sample_s=0.5):
    """Waits until others use at most that share of the CPUs, but no longer than wait_s."""
    deadline = time.monotonic() + wait_s
    while time.monotonic() < deadline:
        before, start = machine_and_children_s()[0], time.monotonic()
        time.sleep(sample_s)
        if (machine_and_children_s()[0] - before) / ((time.monotonic() - start) * len(os.sched_getaffinity(0))) <= share:
            return


def run_job(job):
    """Runs {"argv", "env", "timeout_s", "marker", "quiet"}; gives exit status, output, seconds, and `marker_s`: seconds until stdout
    contained the marker, or anything but space where the marker is empty. `quiet`: {"share", "wait_s"} waits for the machine first."""
    wait_until_quiet(**job.get("quiet") or {"share": 1.0, "wait_s": 0})
    busy_before = machine_and_children_s()
    start = time.monotonic()
    deadline = start + job.get("timeout_s", 600)
    try:
        process = subprocess.Popen(job["argv"], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                                   env={**os.environ, **job.get("env", {})}, start_new_session=True)
    except OSError as error:
        return {"status": 127, "stdout": "", "stderr": str(error), "seconds": 0.0, "marker_s": None, "timed_out": False}
    # Whoever ends this worker, such as `timeout`, ends what it measures.
    signal.signal(signal.SIGTERM, lambda *_: (os.killpg(process.pid, signal.SIGKILL), sys.exit(1)))
    output = {process.stdout: bytearray(), process.stderr: bytearray()}
    open_pipes, marker, marker_s, timed_out = [process.stdout, process.stderr], job.get("marker", "").encode(), None, False
    while open_pipes:
        ready, _, _ = select.select(open_pipes, [], [], max(0.0, deadline - time.monotonic()))
        if not ready:
            timed_out = True
            break
        for pipe in ready:
            chunk = os.read(pipe.fileno(), 65536)
            if not chunk:
                open_pipes.remove(pipe)
            output[pipe] += chunk
            if pipe is process.stdout and marker_s is None and marker in output[pipe] and output[pipe].strip():
                marker_s = time.monotonic() - start
    if timed_out:
        os.killpg(process.pid, signal.SIGKILL)  # the process and what it started: the session is its own
    status = process.wait()
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    seconds = time.monotonic() - start
    machine_s, children_s = (after - before for after, before in zip(machine_and_children_s(), busy_before))
    return {"others": min(1.0, max(0.0, (machine_s - children_s) / (seconds * len(os.sched_getaffinity(0))))), "status": status, "stdout": output[process.stdout].decode(errors="replace"), "stderr": output[process.stderr].decode(errors="replace")[-1000000:],
            "seconds": seconds, "marker_s": marker_s, "timed_out": timed_out}


class Worker:
    """Hands jobs to worker processes. Not for use from several threads."""

    def __init__(self, environment=os.environ, quiet=None):
        self.quiet = quiet
        self.wrapper = shlex.split(environment.get("BENCH_WRAPPER", ""))
        self.turn_s = float(environment.get("BENCH_TURN_SECONDS", "inf"))
        self.process = None

    def run(self, argv, env=None, timeout_s=600, marker=""):
        job = {"argv": [str(word) for word in argv], "env": env or {}, "timeout_s": timeout_s, "marker": marker, "quiet": self.quiet}
        for attempt in range(2):
            self._start()
            try:
                self.process.stdin.write(json.dumps(job) + "\n")
                self.process.stdin.flush()
                line = self.process.stdout.readline()
            except OSError:
                line = ""
            if line:
                if time.monotonic() - self.started > self.turn_s:
                    self.close()
                return json.loads(line)
            self.close()  # the wrapper ended its turn early: the job gets a whole turn of its own, once
        return {"status": 1, "stdout": "", "stderr": "the wrapper ended the measurement", "seconds": 0.0, "marker_s": None, "timed_out": True, "others": 1.0}

    def end_turn(self):
        """Lets others have the machine, while something that is not measured is done."""
        self.close()

    def _start(self):
        if self.process is None:
            self.process = subprocess.Popen([*self.wrapper, sys.executable, os.path.abspath(__file__)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
            self.process.stdout.readline()  # it says that it runs: waiting for the machine is not part of the turn
            self.started = time.monotonic()

    def close(self):
        if self.process is not None:
            try:
                self.process.stdin.close()
            except OSError:
                pass
            self.process.wait()
            self.process.stdout.close()
            self.process = None


def main():
    print("ready", flush=True)
    for line in sys.stdin:
        print(json.dumps(run_job(json.loads(line))), flush=True)


if __name__ == "__main__":
    try:
        main()
    except (BrokenPipeError, KeyboardInterrupt):
        os._exit(1)  # nobody waits for the answer any more
