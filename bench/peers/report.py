"""Tables and the chart of a comparison.

A run is one JSON object:
    machine   {"cpu", "cpus", "features", "threads"}
    peers     {name: {"title", "version", "flags", "isa"} or {"title", "unavailable": reason}}, millrace among them
    cells     {"MODEL|WORKLOAD|PEER": {"values": [...], "others": [...], "setting": {...}, "swept": {...}} or {"reason": text}};
              millrace's also have "mbu", the share of the measured memory bandwidth, for what that bounds
    models    {name: title}
"""
import re
import statistics
from xml.sax.saxutils import escape

from . import workload as workloads

OURS = "millrace"
BEGIN, END = "<!-- bench/compare: begin -->", "<!-- bench/compare: end -->"
DISTURBED_SHARE = 0.05  # of the CPUs, taken by other programs during a measurement


def key(model, workload, peer):
    return f"{model}|{workload}|{peer}"


def cell_of(run, model, workload, peer):
    return run["cells"].get(key(model, workload, peer)) or {}


def median(cell):
    return statistics.median(cell["values"]) if cell.get("values") else None


def number(value):
    return f"{value:.2f}" if value < 10 else f"{value:.1f}" if value < 100 else f"{value:.0f}"


def was_disturbed(cell):
    """Whether half of the measurements or more were disturbed, so that the median may be."""
    return bool(cell.get("values")) and sum(share > DISTURBED_SHARE for share in cell["others"]) * 2 >= len(cell["values"])


def ratio(run, model, workload, peer):
    """How many times faster millrace is than the peer, or None."""
    ours, theirs = median(cell_of(run, model, workload.name, OURS)), median(cell_of(run, model, workload.name, peer))
    if not ours or not theirs:
        return None
    return ours / theirs if workload.higher_is_better else theirs / ours


def best_peer(run, model, workload):
    measured = [(median(cell_of(run, model, workload.name, peer)), peer) for peer in run["peers"] if peer != OURS and cell_of(run, model, workload.name, peer).get("values")]
    if not measured:
        return None
    return (max if workload.higher_is_better else min)(measured)[1]


def measured_workloads(run, model):
    names = {name.split("|")[1] for name in run["cells"] if name.split("|")[0] == model}
    return [workload for workload in workloads.WORKLOADS if workload.name in names]


def model_table(run, model):
    """Rows are engines, columns workloads; reasons for what is missing follow as notes."""
    columns, notes = measured_workloads(run, model), []

    def text(workload, peer):
        cell = cell_of(run, model, workload.name, peer)
        if cell.get("values"):
            spread = f" ({number(min(cell['values']))}–{number(max(cell['values']))})" if len(cell["values"]) > 1 else ""
            return number(median(cell)) + spread + ("*" if was_disturbed(cell) else "")
        reason = cell.get("reason") or run["peers"][peer].get("unavailable") or ("not measured: the run ended before" if cell else "not asked for")
        if reason not in notes:
            notes.append(reason)
        return f"– [{notes.index(reason) + 1}]"

    lines = ["| | " + " | ".join(f"{workload.title}, {workload.unit}" for workload in columns) + " |", "|---|" + "---|" * len(columns)]
    for peer, identity in run["peers"].items():
        lines.append(f"| {identity['title']} | " + " | ".join(text(workload, peer) for workload in columns) + " |")
    for peer in ("llama.cpp", "ik_llama.cpp"):
        if peer in run["peers"]:
            ratios = [ratio(run, model, workload, peer) for workload in columns]
            lines.append(f"| **millrace / {peer}** | " + " | ".join(f"**{number(value)}**" if value else "–" for value in ratios) + " |")
    shares = [cell_of(run, model, workload.name, OURS).get("mbu") for workload in columns]
    if any(shares):
        lines.append("| millrace's MBU | " + " | ".join(f"{statistics.median(values):.0%}" if values else "–" for values in shares) + " |")
    cells = []
    for workload in columns:
        best = best_peer(run, model, workload)
        value = best and ratio(run, model, workload, best)
        cells.append(f"**{number(value)}** ({run['peers'][best]['title']})" if value else "–")
    lines.append("| **millrace / the best peer** | " + " | ".join(cells) + " |")
    if any(was_disturbed(cell_of(run, model, workload.name, peer)) for workload in columns for peer in run["peers"]):
        notes_text = [f"\\* disturbed: in half of the rounds or more, other programs took over {DISTURBED_SHARE:.0%} of the CPUs."]
    else:
        notes_text = []
    notes_text += [f"[{i}] {reason}" for i, reason in enumerate(notes, 1)]
    return "\n".join(lines) + ("\n\n" + "  \n".join(notes_text) if notes_text else "")


def peers_table(run):
    lines = ["| engine | version | built with | instruction sets it reports |", "|---|---|---|---|"]
    for identity in run["peers"].values():
        if "unavailable" in identity:
            lines.append(f"| {identity['title']} | – | not measured: {identity['unavailable']} | – |")
        else:
            lines.append(f"| {identity['title']} | {identity['version']} | {identity['flags']} | {identity['isa']} |")
    return "\n".join(lines)


def setting_text(setting):
    return ", ".join(f"{name} {value}" for name, value in setting.items()) or "default"


def settings_table(run):
    lines = ["| engine | workload | swept | chosen, by model |", "|---|---|---|---|"]
    for peer, identity in run["peers"].items():
        for workload in workloads.WORKLOADS:
            cells = [(model, cell_of(run, model, workload.name, peer)) for model in run["models"]]
            cells = [(model, cell) for model, cell in cells if cell.get("values") and cell.get("swept")]
            if cells:
                swept = "; ".join(f"{name}: {' '.join(map(str, values))}" for name, values in cells[0][1]["swept"].items())
                chosen = "; ".join(f"{model}: {setting_text(cell['setting'])}" for model, cell in cells)
                lines.append(f"| {identity['title']} | {workload.title} | {swept} | {chosen} |")
    refused = sorted({f"- {run['peers'][peer]['title']}, {workload.title}: {text}" for model in run["models"] for workload in workloads.WORKLOADS for peer in run["peers"]
                      for text in cell_of(run, model, workload.name, peer).get("refused", [])})
    return "\n".join(lines) + ("\n\nSettings that did not run:\n\n" + "\n".join(refused) if refused else "")


def continued(before, command):
    """The commands, one a line, that measured a run which `command` goes on with: others are kept, the same again is no other one."""
    commands = before.splitlines()
    if command in (line.removesuffix(" --resume") for line in commands):
        return before
    return "\n".join([*commands, f"{command} --resume" if commands else command])


def document(run, command):
    machine = run["machine"]
    rounds = sorted({len(cell["values"]) for cell in run["cells"].values() if cell.get("values")})
    rounds_text = "nothing measured" if not rounds else f"{rounds[0]} to {rounds[-1]} rounds" if len(rounds) > 1 else f"{rounds[0]} round{'s' if rounds[0] > 1 else ''}"
    parts = ["The same machine, threads and GGUF file for every engine that reads it; the peers at the best of their swept settings, millrace at its defaults; all engines in turn in "
             "every round. Rates are tokens per second: median of the rounds (lowest–highest). Ratios are of medians; above 1 millrace is the faster one.",
             f"```\n{command}\n```",
             f"{machine['cpu']}, {machine['cpus']} CPUs ({' '.join(machine['features'])}), {machine['threads']} thread{'s' if machine['threads'] > 1 else ''}, {rounds_text}:",
             "![bar chart of the tables below](benchmarks.svg)"]
    for model, title in run["models"].items():
        if measured_workloads(run, model):
            parts += [f"### {title}", model_table(run, model)]
    parts += ["### What was measured", workloads.DEFINITIONS, "Settings are swept one after the other, each on a workload of the same kind that is no longer than 1024 tokens. Where 4096 tokens are involved there are half as many "
              "rounds, and a cell whose first figure is under a third of millrace's gets two.",
              "### The engines", peers_table(run), "### Settings", settings_table(run)]
    return "\n\n".join(parts) + "\n"


def replace_between_markers(text, generated):
    if text.count(BEGIN) != 1 or text.count(END) != 1 or text.index(BEGIN) > text.index(END):
        raise ValueError(f"the document needs one line {BEGIN} and, after it, one line {END}")
    return re.sub(re.escape(BEGIN) + ".*" + re.escape(END), lambda _: f"{BEGIN}\n{generated}{END}", text, flags=re.DOTALL)


PANEL_WIDTH, BAR_HEIGHT, LABEL_WIDTH, VALUE_WIDTH, COLUMNS = 400, 18, 125, 50, 2
STYLE = """text{font:12px system-ui,sans-serif;fill:#24292f}.head{font-weight:600;font-size:15px}.title{font-weight:600}.ours{fill:#0f766e}.peer{fill:#94a3b8}
@media (prefers-color-scheme:dark){text{fill:#e6edf3}.ours{fill:#2dd4bf}.peer{fill:#64748b}}"""


def panel(run, model, workload, x, y):
    """One workload's bars at (x, y), and the height they take."""
    rows = [(identity["title"], median(cell_of(run, model, workload.name, peer)), peer) for peer, identity in run["peers"].items()]
    rows = [row for row in rows if row[1]]
    longest = max(value for _, value, _ in rows)
    lower = "" if workload.higher_is_better else ", lower is better"
    lines = [f'<text class="title" x="{x}" y="{y + 14}">{escape(workload.title)}, {workload.unit}{lower}</text>']
    y += 22
    for title, value, peer in rows:
        width = max(1.0, (PANEL_WIDTH - LABEL_WIDTH - VALUE_WIDTH) * value / longest)
        lines.append(f'<text x="{x + LABEL_WIDTH - 6}" y="{y + 12}" text-anchor="end">{escape(title)}</text>'
                     f'<rect class="{"ours" if peer == OURS else "peer"}" x="{x + LABEL_WIDTH}" y="{y + 1}" width="{width:.1f}" height="{BAR_HEIGHT - 4}" rx="2"/>'
                     f'<text x="{x + LABEL_WIDTH + width + 5:.1f}" y="{y + 12}">{number(value)}</text>')
        y += BAR_HEIGHT
    return lines, 22 + len(rows) * BAR_HEIGHT


def chart(run):
    """An SVG of every measured cell: a panel a workload, grouped by model. No background of its own; it follows the reader's colours."""
    lines, y = [], 10
    for model, title in run["models"].items():
        columns = [workload for workload in measured_workloads(run, model) if any(cell_of(run, model, workload.name, peer).get("values") for peer in run["peers"])]
        if not columns:
            continue
        lines.append(f'<text class="head" x="10" y="{y + 16}">{escape(title)}</text>')
        y += 30
        for start in range(0, len(columns), COLUMNS):
            tallest = 0
            for i, workload in enumerate(columns[start:start + COLUMNS]):
                drawn, height = panel(run, model, workload, 10 + i * (PANEL_WIDTH + 20), y)
                lines += drawn
                tallest = max(tallest, height)
            y += tallest + 12
        y += 10
    width = 10 + COLUMNS * (PANEL_WIDTH + 20)
    return (f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {y}" width="{width}" height="{y}" role="img" '
            f'aria-label="Speed of millrace and other engines">\n<style>{STYLE}</style>\n' + "\n".join(lines) + "\n</svg>\n")
