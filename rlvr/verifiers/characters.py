"""One alphabet for the answers of all verifiers: what looks like a digit, a minus or a root is written as one.

Nothing here raises, and every function is linear in its text.
"""

from __future__ import annotations

import re
import unicodedata

# Terminal escapes: colours and cursor movements (CSI), titles and links (OSC), and single shifts.
_ANSI = re.compile(r"\x1b(?:\[[0-?]*[ -/]*[@-~]|\][^\x07\x1b]*(?:\x07|\x1b\\)?|[@-Z\\^_])")

_MINUSES = "\u2010\u2011\u2012\u2013\u2014\u2015\u2212\ufe58\ufe63\uff0d"
_SUPERSCRIPTS = dict(zip("⁰¹²³⁴⁵⁶⁷⁸⁹⁺⁻ⁿ", "0123456789+-n", strict=True))
_SUBSCRIPTS = dict(zip("₀₁₂₃₄₅₆₇₈₉", "0123456789", strict=True))
_RAISED = re.compile(f"[{''.join(_SUPERSCRIPTS)}]+")
_LOWERED = re.compile(f"[{''.join(_SUBSCRIPTS)}]+")
_GREEK = {
    "α": "alpha", "β": "beta", "γ": "gamma", "δ": "delta", "ε": "epsilon", "θ": "theta", "λ": "lambda", "μ": "mu",
    "π": "pi", "ρ": "rho", "σ": "sigma", "τ": "tau", "φ": "phi", "ϕ": "phi", "ω": "omega", "Δ": "Delta", "Ω": "Omega",
}  # fmt: skip
_MATHEMATICS = {
    "×": "\\times ", "⋅": "\\cdot ", "·": "\\cdot ", "∙": "\\cdot ", "÷": "\\div ", "√": "\\sqrt", "∞": "\\infty ",
    "≤": "\\le ", "≥": "\\ge ", "⩽": "\\le ", "⩾": "\\ge ", "≠": "\\ne ", "≈": "\\approx ", "∪": "\\cup ",
    "∩": "\\cap ", "∈": "\\in ", "∅": "\\emptyset ", "±": "\\pm ", "∓": "\\mp ", "°": "^\\circ ", "∘": "^\\circ ",
    "ℝ": "\\mathbb{R}", "−": "-", "∕": "/", "⁄": "/", "∗": "*", "…": "\\dots ", "′": "'", "％": "%", "﹪": "%",
    "（": "(", "）": ")", "，": ",", "．": ".", "［": "[", "］": "]", "｛": "{", "｝": "}", "＝": "=", "＋": "+",
    "：": ":", "／": "/", "＜": "<", "＞": ">", "∣": "|", "｜": "|", "⟨": "\\langle ", "⟩": "\\rangle ",
    "“": '"', "”": '"', "‘": "'", "’": "'",
    **{letter: f"\\{name} " for letter, name in _GREEK.items()},
}  # fmt: skip
_TABLE = str.maketrans(_MATHEMATICS | dict.fromkeys(_MINUSES, "-"))


def clean(text: str) -> str:
    """Returns the text without terminal escapes and invisible characters, with one kind of space and of digit.

    Control characters become spaces, so that a NUL byte parts what stands on its two sides. Digits of every
    script and of every width become ASCII digits; minus signs and dashes become "-".
    """
    if text.isascii() and text.isprintable():
        return text
    text = _ANSI.sub("", text)
    if text.isascii():
        return "".join(c if c.isprintable() or c in "\n\t" else " " for c in text)
    return "".join(map(_clean_character, text))


def _clean_character(character: str) -> str:
    if " " <= character <= "~" or character in "\n\t":
        return character
    if character in _MINUSES:
        return "-"
    category = unicodedata.category(character)
    if category == "Nd":
        return str(unicodedata.digit(character))
    if category == "Cf":  # zero-width joiners, directions, byte order marks
        return ""
    return " " if category[0] in "CZ" else character


def write_as_latex(text: str) -> str:
    """Returns a cleaned text with mathematical characters, raised and lowered digits and fractions as LaTeX."""
    if text.isascii():
        return text
    text = _RAISED.sub(lambda m: "^{" + "".join(_SUPERSCRIPTS[c] for c in m[0]) + "}", text)
    text = _LOWERED.sub(lambda m: "_{" + "".join(_SUBSCRIPTS[c] for c in m[0]) + "}", text)
    return "".join(map(_expand_fraction, text)).translate(_TABLE)


def _expand_fraction(character: str) -> str:
    """Writes "½" as \\frac{1}{2}; the numeral that stands before it makes it a mixed number."""
    if unicodedata.category(character) != "No":
        return character
    written = unicodedata.normalize("NFKC", character)
    numerator, slash, denominator = written.partition("\u2044")
    return f"\\frac{{{numerator}}}{{{denominator or 1}}}" if slash and numerator else written
