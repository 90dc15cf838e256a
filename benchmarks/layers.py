"""How much faster `--layers 1` is than all layers: time of all layers over time of layer 1, router analyses only.

    uv run python -m benchmarks.layers

The bound is what is run: on nano 16 blocks against one and the attention and router of another, so about 11.
"""

from __future__ import annotations

import argparse

import moescope
from benchmarks.timing import alternate, report

ANALYSES = ["entropy", "distributions", "usage", "coactivation", "overlap"]


def main() -> None:
    """Measures and prints one JSON line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--num-tokens", type=int, default=20_000)
    parser.add_argument("--repeats", type=int, default=5)
    arguments = parser.parse_args()
    corpus = moescope.load_corpus("embedded")
    whole = moescope.load_model("nano")
    shallow = moescope.load_model("nano", layers=[1])

    def everything() -> None:
        moescope.capture(whole, corpus, analyses=ANALYSES, num_tokens=arguments.num_tokens, predictions=False)

    def one_layer() -> None:
        moescope.capture(shallow, corpus, analyses=ANALYSES, num_tokens=arguments.num_tokens, layers=[1])

    seconds = alternate(everything, one_layer, repeats=arguments.repeats)
    report("layers/nano-16-over-1", *seconds, num_tokens=arguments.num_tokens)


if __name__ == "__main__":
    main()
