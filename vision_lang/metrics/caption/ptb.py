"""A Penn-Treebank-style tokenizer for captions, which agrees with the usual caption evaluation.

That code runs Stanford's PTBTokenizer (CoreNLP 3.4.1, in Java) on each caption, lower-cases its
tokens and drops some punctuation. What it does was learned by watching it, and is stated here as a
lexer's rules: at each place all rules are tried and the longest match counts, of equals the first.

Where it differs on purpose: a caption is read on its own. The Java program reads all captions as
one text and looks past the end of a line, so that the tokens of a caption that ends in a single
letter ("vitamin c.") depend on the caption that comes next. They do not here.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable, Iterator

NAME = "ptb-3.4.1-lower-nopunct"

# Dropped from the tokens, as written: brackets are lower-cased before, so that they stay.
PUNCTUATION = frozenset("'' ' `` ` . ? ! , : - -- ... ;".split())

# Abbreviations that keep their full stop: in any case, capitalised only, and before a number only.
# Found by asking the Java program: every word of two or three letters and some 30,000 longer ones.
_ABBREVIATIONS = (
    "adj adm adv al ala alex apr ariz assn assoc asst atty attys aug ave bhd bldg blvd brig bros "
    "calif capt cf cie cmdr co col colo comdr conn cont'd corp cos cpl ct dak dec dept det dr drs "
    "elec ens esq est etc ext feb fla fri ft ga gen gov govs hon inc ind insp intl jan jos jr jul "
    "jun kan kans ky lieut lt ltd maj mar md messrs mfg mich minn mlle mme mo mon mont mr mrs ms "
    "msgr mt mtg natl neb nev nov oct okla penn pfc ph plc pres prof profs pte pty pvt rd rep "
    "reps rev rt sen sens sep sept seq sfc sgt spc sq sr st ste supt sys tel tenn thu thurs treas "
    "tue tues univ va vs vt wed wis wisc wm wyo"
).split()
_CAPITALISED = "ark az del ill la mass miss ore pa tex wash".split()
_NUMBERED = "art ca fig figs no nos op pp prop".split()
# A capitalised word that begins a sentence: a single letter before it does not keep its full stop.
_STARTERS = (
    "A About According Additionally After An As At But Earlier He Her Here However If In It Last "
    "Many More Now Once One Other Our She Since So Some Such That The Their Then There These They "
    "This We What When While Yet You"
).split()

# Python's \w takes ² and ½ for letters, but not accents and vowel signs that stand apart. One class
# each, since alternatives that overlap would take exponential time.
_MARKS = r"\u0300-\u036f\u0900-\u0dff\u0e31-\u0e4e"
_NO_LETTERS = r"_²³¹¼-¾\u2070-\u2079\u2080-\u2089\u2150-\u2189\u2460-\u24ff\u2776-\u2793"
_LETTER = rf"(?:(?![\d{_NO_LETTERS}])[\w{_MARKS}])"
_ALNUM = rf"(?:(?![{_NO_LETTERS}])[\w{_MARKS}])"
_APO = r"(?:['’\x92]|&apos;)"
_VERB = rf"{_APO}(?:[sdm]|re|ve|ll)(?!{_LETTER})"  # it's, we've
_NOT = rf"n(?:{_APO}|`)t"
_WORD = rf"{_ALNUM}+(?:_{_ALNUM}+)*"
_PART = rf"(?:[dol]{_APO}(?={_LETTER}{{2}}))?{_WORD}"  # with d', o', l' before it
_HYPHENATED = rf"{_PART}(?:[-‑]{_PART})*"  # jack-o'lantern
_LISTED = rf"[a-z\d][a-z\d.,]*(?:-{_PART})+"  # red,blue-green stays together
_ACRONYM = rf"{_LETTER}(?:\.{_LETTER})+(?!{_ALNUM})\.?"
_NUMBER = r"(?:\d+(?:[.,:]\d+)*|(?:[.,:]\d+)+)"
_FRACTION = r"(?:\d{1,4}[- \xa0])?\d{1,4}(?:\\?/|⁄)\d{1,4}"
_SLASHED = r"[a-z\d]+(?:-[a-z]+){0,2}"
_STOP_BEFORE = r"\s\"<>|(){}\[\]“”"


def _words(words: Iterable[str]) -> str:
    return "(?:" + "|".join(words) + ")"


# A rule with groups gives one token per group, and reading goes on behind the last of them: what
# follows it is only looked at, but counts for the length. In any case, unless (?-i:...) says so.
_RULES = [
    re.compile(rule, re.IGNORECASE)
    for rule in (
        # Contractions
        r"(can)(not)(?!\w)",
        r"(gon|wan)(na)(?!\w)",
        r"(got)(ta)(?!\w)",
        r"(gim|lem)(me)(?!\w)",
        rf"({_APO}t)(is|was)(?!\w)",
        rf"({_LETTER}+?){_NOT}",
        rf"({_WORD}){_VERB}",
        _VERB,
        _NOT,
        rf"([yj]{_APO}){_LETTER}",
        rf"(?:[dlj]|(?:ol|somethin|dunkin)(?={_APO}(?!{_ALNUM}))){_APO}",
        # Words with an apostrophe inside or before
        rf"(?-i:[A-HJ-XZn]|[dlo]){_APO}{_LETTER}{{2,}}",
        rf"{_LETTER}+[aeiouy]{_APO}(?:[aeiou]|(?-i:[A-Z])){_LETTER}*",
        rf"(?:e{_APO}er|c{_APO}mon|s{_APO}mores|nat{_APO}l)",
        rf"{_APO}(?:em|till?|cause|n{_APO}|n(?!{_ALNUM})|[2-9]0s|\d\d(?=\s|$))",
        # Words, numbers, abbreviations
        _HYPHENATED,
        _LISTED,
        rf"((?:{_HYPHENATED}|{_LISTED})\.)[,;:]",
        rf"(?:{_ALNUM}(?:{_ALNUM}|[_.,])*-)*{_ACRONYM}",
        rf"(?-i:[a-zA-Z])\.(?!\s+(?-i:{_words(_STARTERS)})(?:\s|$))",
        r"ph\.d\.?",
        rf"{_words(_ABBREVIATIONS)}\.",
        rf"(?-i:{_words(f'{w.title()}|{w.upper()}' for w in _CAPITALISED)})\.",
        rf"({_words(_NUMBERED)}\.)\s*\d",
        rf"[+-]?{_NUMBER}",
        _FRACTION,
        rf"\d+/\d+(?:-{_PART})+",
        rf"{_SLASHED}(?:\\?/{_SLASHED}){{1,2}}",
        rf"{_LETTER}{_ALNUM}*(?:[.!?]{_LETTER}{_ALNUM}*)+",
        r"(?-i:[A-Z]+(?:(?:[+&]|&amp;)[A-Z]+)+)",
        r"(?:\+?(?:\d{2,4}[ -])?\d{2,4}[ -]|\(\d{2,3}\) ?)\d{3,4}[ -]?\d{3,5}",
        # The web
        rf"https?://[^{_STOP_BEFORE}]{{2,}}[^{_STOP_BEFORE}.,;:!?-]",
        rf"(?:[a-z\d]+\.)+(?:com|net|org|edu)(?:[/?][^{_STOP_BEFORE}]+[^{_STOP_BEFORE}.,;:!?-])?(?!\w)",
        r"(?:mailto:)?[\w.+-]+@[\w-]+(?:\.[\w-]+)*",
        rf"#{_LETTER}+|@[a-z_]\w*",
        r"</?[a-z][\w:.-]*(?:\s+[^<>]*)?/?>|<[!?][^<>]*>",
        r"&(?:amp|lt|gt|quot|apos|nbsp|mdash|\#\d+|[a-z](?:acute|grave|circ|uml|tilde|cedil));",
        # Signs
        rf"[<>]?[:;=][o'’-]?(?:[][(){{@|\\dp]|(?-i:O))(?!{_ALNUM})|[-^=~<>]_[-^=~<>]",
        r"(?-i:US|HK|NZ|AU|[A-Z])\$",
        r"[?!]+",
        r"\.\.\.|\. \. \.|''",
        r"__+|--+|\*\*+|##+|@@+",
        r"<<|>>",
    )
]
_NOT_PLAIN = {"cannot", "gonna", "gotta", "wanna", "gimme", "lemme", *_ABBREVIATIONS, *_CAPITALISED}
# Most words of captions, where no rule reads more into them: letters before a space, a comma or the
# end. They need not try the rules.
_PLAIN = re.compile(r"([A-Za-z]+)(?= |, |,?$)|([A-Za-z]{2,})\.$")
_SPACE = re.compile(r"\s+")
_WRITTEN = {
    "(": "-lrb-", ")": "-rrb-", "[": "-lsb-", "]": "-rsb-", "{": "-lcb-", "}": "-rcb-",
    "€": "$", "¤": "$", "₠": "$", "£": "#", "¢": "cents",
    "¼": "1/4", "½": "1/2", "¾": "3/4", "⅓": "1/3", "⅔": "2/3",
    "&amp;": "&", "&lt;": "<", "&gt;": ">", "&quot;": "''", "&apos;": "'", "&mdash;": "--",
    **dict.fromkeys("\"“”«»", "''"), **dict.fromkeys("‘’‛‹›\x91\x92", "'"),
    **dict.fromkeys([*"–—―\x96\x97", "---", "----"], "--"), "…": "...", ". . .": "...",
    "‐": "", "&nbsp;": "",
}  # fmt: skip


def tokenize(caption: str) -> list[str]:
    """The tokens of one caption, in lower case and without punctuation.

    A token may hold a no-break space, as in "1\\xa01/2" and in telephone numbers.
    """
    written = map(_written, _scan(caption))
    return [token for token in written if token and token not in PUNCTUATION]


def _scan(text: str) -> Iterator[str]:
    """The pieces of a caption, as it writes them."""
    at = 0
    while at < len(text):
        if space := _SPACE.match(text, at):
            at = space.end()
            continue
        plain = _PLAIN.match(text, at)
        if plain and (word := plain[1] or plain[2]).lower() not in _NOT_PLAIN:
            yield word
            at = plain.end()
            continue
        matches = filter(None, (rule.match(text, at) for rule in _RULES))
        match = max(matches, key=re.Match.end, default=None)
        if match is None:
            yield text[at]
            at += 1
        elif match.lastindex:
            yield from filter(None, match.groups())
            at = match.end(match.lastindex)
        else:
            yield match.group()
            at = match.end()


def _written(piece: str) -> str:
    """A piece as the token that the Treebank writes for it; nothing for signs that it lacks."""
    if piece.isascii() and piece.isalpha():
        return piece.lower()
    if piece in _WRITTEN:
        return _WRITTEN[piece]
    if len(piece) == 1:
        kind = unicodedata.category(piece)[0]
        if kind not in "LNPS" or (kind in "PS" and piece >= "\u2e00"):
            return ""
    if re.fullmatch(f"{_VERB}|{_NOT}", piece, re.IGNORECASE):
        piece = re.sub(_APO, "'", piece)
    piece = re.sub(r"\s", "\xa0", piece).replace("(", "-lrb-").replace(")", "-rrb-")
    return piece.lower().replace("\xad", "")
