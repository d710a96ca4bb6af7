"""Texts of mixed lengths for benchmarks of embeddings: made of a seed, the same on every machine.

Every word and stop is one token of BERT's English vocabulary, so that a text has the length that was drawn for it.
"""
import math
import random

WORDS = """the of and to in a is that for it as was with be by on not he his but at are this have from or had an they which one you were all her she there would their we him been has when who will no more
if out so up said what its about than into them can only other time new some could these two may first then do any like my now over such our man me even most made after also did many off before must well
back through years where much your way down should because long each just state those people too mr little good world make very year still see work life men government under day might while house last
school never water river stone wheel field bread market city road bridge village winter summer spring morning evening child mother father king church war peace power law court music book paper letter
language history science nature animal bird horse fish tree forest mountain island sea ship train engine light sound color green white black red blue small large great old young high low early late free
open strong clear dark warm cold hard soft common special simple local national public private human social short front left right north south east west english french german money bank trade price value
doctor student teacher writer question answer number order problem system method theory study report result change growth increase effect cause reason case point line form part place side hand head eye
face voice door room table window street garden hill wind rain snow fire glass iron gold wood cotton food meat milk salt sugar wine""".split()

MEDIAN_TOKENS, SPREAD = 46.5, 0.8  # of the logarithmic normal distribution that lengths are drawn from: its mean is 64
FEWEST_TOKENS, MOST_TOKENS = 5, 256


def text_of(num_tokens, chance):
    """Sentences of so many words and stops."""
    parts, until_stop = [], 0
    while len(parts) < num_tokens:
        if until_stop == 0 and parts or len(parts) == num_tokens - 1:
            parts.append(".")
            until_stop = chance.randint(6, 18)
        else:
            parts.append(chance.choice(WORDS))
            until_stop = max(0, (until_stop or chance.randint(6, 18)) - 1)
    return " ".join(parts).replace(" .", ".")


def texts(count, seed=1):
    """So many texts, in the order they arrive; lengths are counted with the two tokens that frame a text."""
    chance = random.Random(seed)
    lengths = [min(MOST_TOKENS, max(FEWEST_TOKENS, round(chance.lognormvariate(math.log(MEDIAN_TOKENS), SPREAD)))) for _ in range(count)]
    return [text_of(length - 2, chance) for length in lengths]
