"""Tables of a comparison of servers.

A run is one JSON object:
    machine   {"cpu", "cpus", "features", "threads"}
    model     title
    servers   {name: {"title", "version", "options"} or {"title", "unavailable": reason}}, millrace first
    cells     {"WORKLOAD|SERVER": [one round's {"figures": {...}, "others": share}, ...]}
"""
import statistics

from .report import DISTURBED_SHARE, number

OURS = "millrace"

# Column: (key of a round's figures, title, whether more is better; None: no ratio is made of it).
LOAD_COLUMNS = (("output_throughput", "tokens/s", True), ("ttft_p50", "TTFT p50, ms", False), ("ttft_p99", "TTFT p99, ms", False), ("tpot_p50", "TPOT p50, ms", False),
                ("itl_p99", "ITL p99, ms", False), ("server_cpu_s_per_1000_tokens", "server CPU s / 1,000 tokens", False), ("failed", "failed", None))
PREFIX_COLUMNS = (("ttft_first", "TTFT of the first, ms", False), ("ttft_later", "TTFT of later ones, ms", False), ("gain", "first / later", True), ("failed", "failed", None))
OVERLOAD_COLUMNS = (("request_rate", "requests/s sent", None), ("completed", "completed", None), ("refused", "429", None), ("cut", "failed otherwise", None),
                    ("ttft_p50", "TTFT p50, ms", False), ("ttft_p99", "TTFT p99, ms", False), ("output_throughput", "tokens/s", True), ("refusal_p99", "refused after p99, ms", None),
                    ("resident_half", "resident halfway, MB", None), ("resident_end", "at the end, MB", None))


def columns_of(workload):
    return {"prefix": PREFIX_COLUMNS, "overload": OVERLOAD_COLUMNS}.get(workload, LOAD_COLUMNS)


def values_of(run, workload, server, column):
    rounds = run["cells"].get(f"{workload}|{server}", [])
    return [each["figures"][column] for each in rounds if each["figures"].get(column) is not None]


def cell_text(values):
    if not values:
        return "–"
    median = statistics.median(values)
    shown = number(median) if isinstance(median, float) and not median.is_integer() else f"{median:.0f}"
    return shown + (f" ({number(min(values))}–{number(max(values))})" if min(values) != max(values) else "")


def ratio(run, workload, server, column, higher_is_better):
    """How many times better millrace's median is, or None."""
    ours, theirs = (values_of(run, workload, name, column) for name in (OURS, server))
    if higher_is_better is None or not ours or not theirs:
        return None
    ours, theirs = statistics.median(ours), statistics.median(theirs)
    if not ours or not theirs:
        return None
    return ours / theirs if higher_is_better else theirs / ours


def table(run, workload):
    columns = columns_of(workload)
    lines = ["| | " + " | ".join(title for _, title, _ in columns) + " |", "|---|" + "---|" * len(columns)]
    for name, identity in run["servers"].items():
        if f"{workload}|{name}" in run["cells"]:
            lines.append(f"| {identity['title']} | " + " | ".join(cell_text(values_of(run, workload, name, key)) for key, _, _ in columns) + " |")
    for name in run["servers"]:
        ratios = [ratio(run, workload, name, key, higher) for key, _, higher in columns]
        if name != OURS and any(ratios):
            lines.append(f"| **millrace / {name}** | " + " | ".join(f"**{number(value)}**" if value else "" for value in ratios) + " |")
    return "\n".join(lines)


def disturbance(run):
    shares = [each["others"] for rounds in run["cells"].values() for each in rounds]
    disturbed = sum(share > DISTURBED_SHARE for share in shares)
    return f"{disturbed} of {len(shares)} measurements were disturbed: other programs took over {DISTURBED_SHARE:.0%} of the CPUs, {max(shares, default=0):.0%} at most."


def heading_of(workload):
    titles = {"prefix": "A long shared prefix", "overload": "Overload"}
    return titles.get(workload) or (f"{workload} client" + ("s" if workload != "1" else "") + ", closed loop")


def document(run):
    machine = run["machine"]
    num_rounds = max((len(rounds) for rounds in run["cells"].values()), default=0)
    parts = [f"{run['model']} on {machine['cpu']}, {machine['cpus']} CPUs ({' '.join(machine['features'])}), {machine['threads']} threads. Every server reads the same file and is started anew for every cell; servers take turns, in another order "
             f"each round, and each round has prompts of its own. {num_rounds} round{'s' if num_rounds != 1 else ''}: median (lowest–highest). Ratios are of medians; above 1 millrace is the better one. The client, `millrace bench serve`, runs on the same CPUs.",
             f"```\n{run['command']}\n```", disturbance(run)]
    for workload in dict.fromkeys(key.split("|")[0] for key in run["cells"]):
        parts += [f"### {heading_of(workload)}", run["what"][workload], table(run, workload)]
    rows = [f"| {identity['title']} | " + (f"not measured: {identity['unavailable']} | " if "unavailable" in identity else f"{identity['version']} | {identity['options']}") + " |"
            for identity in run["servers"].values()]
    return "\n\n".join([*parts, "### The servers", "\n".join(["| server | version | options |", "|---|---|---|", *rows])]) + "\n"
