"""Sentences, words, stop words and languages, as the published checks of instructions see them, without downloads.

Those checks cut texts with NLTK. Its tokenizers are used as they are, but the statistics of its English sentence
model are a download: the short lists below stand in for its abbreviations and for what it learned of 20,000 words'
capitals. Sentences can differ from NLTK's where the word behind an abbreviation, an initial or "..." decides.
"""

from __future__ import annotations

import functools
import re
from typing import Any

_ABBREVIATIONS = """
mr mrs ms dr prof rev gen col maj capt lt sgt adm gov sen rep reps messrs sr jr st ph.d m.d d.c b.a m.a m.b.a
inc corp co cos ltd bros cie vs v ave wash calif mass mich minn conn fla colo ore ariz okla tenn wis kan ky va
ga ala nev ill pa vt r.i n.h n.j n.y n.c n.d s.c s.d w.va n.m l.a u.s u.k u.n u.s.a u.s.s.r a.m p.m a.d b.c
jan feb aug sept sep oct nov dec tues wed fri ft yr chg c e f h m n r s t w
""".split()
# With a capital, these start a sentence even behind an abbreviation.
_STARTERS = """
the this these there it he they i so both if in but however indeed instead nevertheless nonetheless moreover meanwhile
since while when although though despite under according many most some similarly separately thus even yet among nor
""".split()
# Words that are mostly written small inside a sentence. Behind an initial (`A. Which one`) a capital starts another.
_SMALL = """
a about above after again all also am an and another any are as at be because been before being below between by can
could did do does doing down during each few for from further had has have having her here his how into is its itself
just let may me more my no not now of off on once one only or other our out over own same she should such than that
their then those through to too until up use very was we were what where who why will with would you your next find
first second third last write given add list key data overview introduction summary steps background security
""".split()
# Words that have a capital almost nowhere else: behind an initial or an abbreviation they start a sentence.
_SMALLER = """
answer which thus finish example examples step describe explain create using provide include including ensure finally
suppose calculate compare consider note true yes please therefore hence furthermore better different various following
potential initial number type person things point points question questions problem problems solution solutions result
results effects cause method process language words sentence paragraphs letters section sections title response analysis
discussion conclusion remove try need think allow provides develop evidence implementation implement features choose
select check evaluate goals actions importance challenges encouragement
""".split()

STOP_WORDS = frozenset(
    """
    i me my myself we our ours ourselves you your yours yourself yourselves he him his himself she her hers herself it
    its itself they them their theirs themselves what which who whom this that these those am is are was were be been
    being have has had having do does did doing a an the and but if or because as until while of at by for with about
    against between into through during before after above below to from up down in out on off over under again further
    then once here there when where why how all any both each few more most other some such no nor not only own same so
    than too very s t can will just don should now d ll m o re ve y ain aren couldn didn doesn hadn hasn haven isn ma
    mightn mustn needn shan shouldn wasn weren won wouldn
    """.split()
)

_WORD = re.compile(r"\w+")
_BEGINS_CAPITAL, _INSIDE_CAPITAL, _INSIDE_SMALL = 1 << 1, 1 << 2, 1 << 5  # flags of nltk.tokenize.punkt


def warm_up() -> None:
    """Loads the libraries and the language profiles, which takes seconds."""
    split_sentences("One. Two.")
    split_words("One, two.")
    detect_language("This is an English sentence.")
    import emoji  # noqa: F401
    import syllapy  # noqa: F401


def split_sentences(text: str) -> list[str]:
    """Returns the sentences of an English text, white space around them taken off."""
    return list(_load_sentence_tokenizer().tokenize(text))


def split_words(text: str) -> list[str]:
    """Returns words and punctuation marks as NLTK's `word_tokenize` does: `can't` is `ca`, `n't`."""
    tokenize = _load_word_tokenizer().tokenize
    return [word for sentence in split_sentences(text) for word in tokenize(sentence)]


def count_words(text: str) -> int:
    """Returns the number of runs of letters, digits and underscores."""
    return len(_WORD.findall(text))


def find_words(text: str) -> list[str]:
    """Returns the runs of letters, digits and underscores."""
    return _WORD.findall(text)


def detect_language(text: str) -> str | None:
    """Returns the language's ISO 639-1 code as langdetect guesses it ("zh-cn", "zh-tw"), None where it cannot.

    The same text always gets the same answer: langdetect draws random numbers, here from a fixed seed.
    """
    import langdetect

    langdetect.DetectorFactory.seed = 0
    try:
        return str(langdetect.detect(text))
    except langdetect.LangDetectException:  # no letters in it
        return None


@functools.cache
def _load_sentence_tokenizer() -> Any:
    from nltk.tokenize import punkt

    parameters = punkt.PunktParameters()
    parameters.abbrev_types.update(_ABBREVIATIONS)
    parameters.sent_starters.update(_STARTERS)
    for word in (*_STARTERS, *_SMALL):
        parameters.ortho_context[word] = _BEGINS_CAPITAL | _INSIDE_CAPITAL | _INSIDE_SMALL
    for word in _SMALLER:
        parameters.ortho_context[word] = _BEGINS_CAPITAL | _INSIDE_SMALL
    return punkt.PunktSentenceTokenizer(parameters)


@functools.cache
def _load_word_tokenizer() -> Any:
    from nltk.tokenize.destructive import NLTKWordTokenizer

    return NLTKWordTokenizer()
