"""Finds a peer's best settings."""
from .peer import Unavailable


def coordinate_search(options, measure, higher_is_better=True):
    """The best setting found by varying one option at a time, in the given order, keeping what was better; and what was refused.

    options: {name: [values]}, the first of each the start. measure(setting) gives a figure or raises Unavailable; a setting that the
    peer refuses is passed over, unless it refuses all: then the last refusal is raised. At most one measurement a value is made.
    Returns (setting, [(setting, reason)]).
    """
    setting = {name: values[0] for name, values in options.items()}
    if all(len(values) == 1 for values in options.values()):
        return setting, []  # nothing to choose
    sign = 1 if higher_is_better else -1
    best, refused = None, []

    def try_setting(tried):
        nonlocal best, setting
        try:
            figure = sign * measure(tried)
        except Unavailable as error:
            refused.append((tried, str(error)))
            return
        if best is None or figure > best:
            best, setting = figure, tried

    try_setting(setting)
    for name, values in options.items():
        for value in values[1:]:
            try_setting({**setting, name: value})
    if best is None:
        raise Unavailable(refused[-1][1])
    return setting, refused
