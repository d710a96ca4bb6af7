"""Tables of a comparison of engines that make embeddings.

A run is one JSON object:
    machine   {"cpu", "cpus", "features", "threads"}
    model     title;  command, batch
    corpus    {"texts", "tokens", "tokens_shortest", "tokens_longest"}
    engines   {name: {"title", "precision", "version", "setting", "swept", "cosine": {"min", "mean"}} or {"title", "unavailable": reason}}, millrace's first
    rounds    {name: [{"arrival": tokens/s, "sorted": tokens/s, "tokenize_share": {"arrival", "sorted"}, "others": share}, ...]}
"""
import math
import statistics

from .report import DISTURBED_SHARE, number, setting_text

OURS = "millrace"
# What is compared: title, our order, the other's.
PAIRINGS = (("both in arrival order", "arrival", "arrival"), ("both sorted by length", "sorted", "sorted"), ("millrace in arrival order, the other sorted by length", "arrival", "sorted"))


def cosines(ours, reference, num_texts):
    """{"min", "mean"} of the cosines of two arrays of as many embeddings."""
    if len(ours) != len(reference) or len(ours) % num_texts:
        raise ValueError(f"{len(ours)} numbers beside {len(reference)} of {num_texts} texts")
    size, values = len(ours) // num_texts, []
    for at in range(0, len(ours), size):
        a, b = ours[at:at + size], reference[at:at + size]
        values.append(math.sumprod(a, b) / math.sqrt(math.sumprod(a, a) * math.sumprod(b, b)) if hasattr(math, "sumprod") else
                      sum(x * y for x, y in zip(a, b)) / math.sqrt(sum(x * x for x in a) * sum(y * y for y in b)))
    return {"min": min(values), "mean": statistics.fmean(values)}


def values_of(run, name, order):
    return [each[order] for each in run["rounds"].get(name, [])]


def rate(run, name, order):
    values = values_of(run, name, order)
    return statistics.median(values) if values else None


def cell_text(values):
    if not values:
        return "–"
    return f"{statistics.median(values):,.0f}" + (f" ({min(values):,.0f}–{max(values):,.0f})" if len(values) > 1 else "")


def cosine_text(value):
    return f"{value:.6f}"


def table(run):
    lines = ["| | arrival order, tokens/s | sorted by length, tokens/s | texts/s, arrival | tokenizing, arrival | cosine, lowest | cosine, mean |", "|---|---|---|---|---|---|---|"]
    per_text = run["corpus"]["tokens"] / run["corpus"]["texts"]
    for name, identity in run["engines"].items():
        if "unavailable" in identity:
            lines.append(f"| {identity['title']} | not measured: {identity['unavailable']} | | | | | |")
            continue
        arrival = rate(run, name, "arrival")
        shares = [each["tokenize_share"]["arrival"] for each in run["rounds"].get(name, []) if each.get("tokenize_share")]
        cosine = identity.get("cosine")
        lines.append(f"| {identity['title']} | {cell_text(values_of(run, name, 'arrival'))} | {cell_text(values_of(run, name, 'sorted'))} | {arrival / per_text:,.0f} | "
                     f"{f'{statistics.median(shares):.0%}' if shares else '–'} | {cosine_text(cosine['min']) if cosine else '–'} | {cosine_text(cosine['mean']) if cosine else '–'} |" if arrival else
                     f"| {identity['title']} | – | – | – | – | – | – |")
    return "\n".join(lines)


def ratio_table(run, our_order, their_order):
    """None where there is nothing to compare."""
    ours = [name for name in run["engines"] if name.startswith(OURS) and rate(run, name, our_order)]
    theirs = [name for name in run["engines"] if not name.startswith(OURS) and rate(run, name, their_order)]
    if not ours or not theirs:
        return None
    lines = ["| | " + " | ".join(run["engines"][name]["title"] for name in theirs) + " |", "|---|" + "---|" * len(theirs)]
    for name in ours:
        precision, cells = run["engines"][name]["precision"], []
        for other in theirs:
            text = number(rate(run, name, our_order) / rate(run, other, their_order))
            cells.append(f"**{text}**" if run["engines"][other]["precision"] == precision else text)
        lines.append(f"| {run['engines'][name]['title']} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def disturbance(run):
    shares = [each["others"] for rounds in run["rounds"].values() for each in rounds]
    disturbed = sum(share > DISTURBED_SHARE for share in shares)
    return f"{disturbed} of {len(shares)} measurements were disturbed: other programs took over {DISTURBED_SHARE:.0%} of the CPUs, {max(shares, default=0):.0%} at most."


def document(run):
    machine, corpus = run["machine"], run["corpus"]
    num_rounds = max((len(rounds) for rounds in run["rounds"].values()), default=0)
    parts = [f"{run['model']} on {machine['cpu']}, {machine['cpus']} CPUs ({' '.join(machine['features'])}), {machine['threads']} threads. {corpus['texts']} texts of {corpus['tokens_shortest']} to {corpus['tokens_longest']} tokens, "
             f"{corpus['tokens'] / corpus['texts']:.0f} in the mean, in batches of {run['batch']}. Tokens are those of the texts, without padding; tokenizing is part of the time. Engines take turns, in another order each round. "
             f"{num_rounds} round{'s' if num_rounds != 1 else ''}: median (lowest–highest). Cosines are with sentence-transformers in f32.",
             f"```\n{run['command']}\n```", disturbance(run), table(run)]
    ratios = [(title, ratio_table(run, ours, theirs)) for title, ours, theirs in PAIRINGS]
    if any(text for _, text in ratios):
        parts += ["### Ratios", "Of medians; above 1 millrace is the faster one. Bold: the same precision."]
        for title, text in ratios:
            parts += [f"{title[0].upper()}{title[1:]}:", text]
    rows = ["| engine | version | swept | chosen |", "|---|---|---|---|"]
    for identity in run["engines"].values():
        if "unavailable" not in identity:
            swept = "; ".join(f"{option}: {' '.join(values)}" for option, values in identity["swept"].items() if len(values) > 1)
            rows.append(f"| {identity['title']} | {identity['version']} | {swept or '–'} | {setting_text(identity['setting']) if identity['setting'] else 'defaults'} |")
    return "\n\n".join([*parts, "### The engines", "\n".join(rows)]) + "\n"
