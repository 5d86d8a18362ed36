"""The quality filters in plain Python, slow and short: the oracle of the kernels of clean."""

from __future__ import annotations

import re
from collections import Counter

from stages.clean.english import (
    AFTER_DIGIT,
    AFTER_STOP,
    BEFORE_STOP,
    CLASSES,
    ENDED_BY_STOP,
    ICON,
    LETTER,
    PREFIX,
    PUNCTUATION,
    SENTENCE_END,
    SUFFIX,
    SYMBOL,
    character_classes,
    listed_words,
    units,
)
from stages.clean.english import LINE_END as ENDS_LINE

FLAGS = character_classes()
LISTED = {word: parts for word, parts in listed_words().items() if len(word) <= 15}
UNITS = set(units())
assert len(CLASSES) == 11
HOST = r"(?:(?:[A-Za-z0-9\u00a1-\uffff][A-Za-z0-9\u00a1-\uffff_-]{0,62})?[A-Za-z0-9\u00a1-\uffff]\.)+"
NUMBER = r"(?:\d{1,2}|[01]\d\d|2[0-4]\d|25[0-5])"
TAIL = r"(?::[0-9]{2,5})?(?:[/?#]\S*)?\Z"


def has(character: str, flag: int) -> bool:
    return character != "" and bool(FLAGS[ord(character)] & flag)


def digit(character: str) -> bool:
    return character in set("0123456789")


def prefix(word: str) -> int:
    if dots := re.match(r"\.\.+|US\$|[AC]\$", word):
        return dots.end()
    return int(has(word[0], PREFIX) and not re.match(r"\+[0-9]", word))


def suffix(word: str) -> int:
    for length in range(len(word), 0, -1):
        end, before = word[-length:], word[:-length][-1:]
        if re.fullmatch(r"\.\.+|……|['’][sS]", end) or (length == 1 and has(end, SUFFIX)):
            return length
        if digit(before) and (
            end in UNITS or end in ("+", "US$", "A$", "C$") or (length == 1 and has(end, AFTER_DIGIT))
        ):
            return length
        if end == "." and (has(before, ENDED_BY_STOP) or re.search(r"°[FCK]\.\Z", word)):
            return 1
        if end == "." and len(word) > 2 and all(has(c, LETTER) and has(c, AFTER_STOP) for c in word[-3:-1]):
            return 1
    return 0


def is_address(word: str) -> bool:
    starts = [0, *(place + 1 for place in range(1, len(word)) if word[place] == "@")]
    if scheme := re.match(r"(?:[a-zA-Z0-9_+.-]|[^\W\d_]){2,}://", word):
        starts.append(scheme.end())
    for start in starts:
        host = re.compile(HOST).match(word, start)
        while host:  # each way to end the host
            small = re.compile(r"[^\W\d_]{2,63}" + TAIL).match(word, host.end())
            if small and all(has(c, LETTER) and has(c, BEFORE_STOP) for c in re.split(r"[:/?#]", small.group())[0]):
                return True
            host = re.compile(HOST).fullmatch(word, start, host.end() - 1) if host.end() - 1 > start else None
        if re.compile(rf"{NUMBER}(?:\.{NUMBER}){{3}}{TAIL}").match(word, start):
            return True
    return False


def infix(word: str, place: int) -> int:
    before, here, after = word[place - 1] if place else "", word[place], word[place + 1 : place + 2]
    if dots := re.compile(r"\.\.+").match(word, place):
        return dots.end() - place
    if here == "…" or has(here, ICON):
        return 1
    if digit(before) and here in "+-*^" and re.match("[0-9-]", after):
        return 1
    if here == "." and has(before, BEFORE_STOP) and has(after, AFTER_STOP):
        return 1
    if here == "," and has(before, LETTER) and has(after, LETTER):
        return 1
    if digit(before) or has(before, LETTER):
        for dash in ("-", "–", "—", "--", "---", "——", "~", *":<>=/"):
            if word.startswith(dash, place) and has(word[place + len(dash) : place + len(dash) + 1], LETTER):
                return len(dash)
    return 0


def inside(word: str) -> list[str]:
    if is_address(word):
        return [word]
    found, start, place = [], 0, 0
    while place < len(word):
        size = infix(word, place)
        if size and place:
            found += [word[start:place], word[place : place + size]]
            start = place + size
        place += max(size, 1)
    return [part for part in [*found, word[start:]] if part]


def split(word: str, listed: dict[str, tuple[str, ...]]) -> list[str]:
    before: list[str] = []
    behind: list[str] = []
    length = -1
    while word and len(word) != length and word not in listed:
        length = len(word)
        n = prefix(word)
        if n and word[n:] in listed:
            before, word = [*before, word[:n]], word[n:]
            break
        m = suffix(word[n:]) if word[n:] else 0
        if m and word[:-m] in listed:
            behind, word = [word[-m:], *behind], word[:-m]
            break
        if n:
            before = [*before, word[:n]]
        if m:
            behind = [word[-m:], *behind]
        word = word[n : len(word) - m]
    middle = list(listed[word]) if word in listed else inside(word)
    return [*before, *middle, *behind]


def joined(words: list[str], patterns: dict[tuple[str, ...], tuple[str, ...]]) -> list[str]:
    place = 0
    while place < len(words):
        for last in range(min(len(words), place + 7), place + 1, -1):
            if parts := patterns.get(tuple(words[place:last])):
                words = [*words[:place], *parts, *words[last:]]
                break
        place += 1
    return words


PATTERNS = {
    pattern: parts
    for parts, pattern in ((parts, tuple(split(word, {}))) for word, parts in LISTED.items())
    if 1 < len(pattern) <= 7 and pattern != parts
}


def words_of(text: str) -> list[str]:
    return [word for chunk in text.split() for word in joined(split(chunk, LISTED), PATTERNS)]


# Measures


def repeated(parts: list[str]) -> tuple[int, int]:
    seen: set[str] = set()
    again = [part for part in parts if part in seen or seen.add(part)]  # type: ignore[func-returns-value]
    return len(again), sum(map(len, again))


def top(words: list[str], n: int) -> int:
    grams = Counter(" ".join(words[i : i + n]) for i in range(len(words) - n + 1))
    gram, count = grams.most_common(1)[0] if grams else ("", 0)
    return len(gram) * count


def repeated_grams(words: list[str], n: int) -> int:
    seen: set[str] = set()
    place = characters = 0
    while place <= len(words) - n:
        gram = "".join(words[place : place + n])
        if gram in seen:
            characters, place = characters + len(gram), place + n
        else:
            seen.add(gram)
            place += 1
    return characters


def gopher_measures(text: str, stop_words: list[str]) -> dict[str, float]:
    """What each of Gopher's rules measures."""
    words = words_of(text)
    paragraphs, lines = re.split(r"\n{2,}", text.strip()), re.split(r"\n+", text)
    plain = [word for word in words if not all(has(c, SYMBOL) for c in word)]
    all_lines = text.split("\n")
    found = {
        "max_duplicate_paragraph_ratio": repeated(paragraphs)[0] / len(paragraphs),
        "max_duplicate_paragraph_character_ratio": repeated(paragraphs)[1] / len(text),
        "max_duplicate_line_ratio": repeated(lines)[0] / len(lines),
        "max_duplicate_line_character_ratio": repeated(lines)[1] / len(text),
        **{f"max_top_{n}gram_ratio": top(words, n) / len(text) for n in (2, 3, 4)},
        **{f"max_duplicate_{n}gram_ratio": repeated_grams(words, n) / len(text) for n in range(5, 11)},
        "min_words": len(plain),
        "max_words": len(plain),
        "max_hash_ratio": text.count("#") / len(words),
        "max_ellipsis_ratio": (text.count("...") + text.count("…")) / len(words),
        "max_bullet_line_ratio": sum(line.lstrip().startswith(("•", "-")) for line in all_lines) / len(all_lines),
        "max_ellipsis_line_ratio": sum(line.rstrip().endswith(("...", "…")) for line in all_lines) / len(all_lines),
        "min_alphabetic_ratio": sum(any(c.isalpha() for c in word) for word in words) / len(words),
        "min_stop_words": len(set(stop_words) & set(words)),
    }
    if plain:
        found["min_mean_word_length"] = found["max_mean_word_length"] = sum(map(len, plain)) / len(plain)
    return found


def page_measures(text: str, short: int) -> dict[str, float]:
    """What FineWeb's rules and `min_sentences` measure."""
    lines = [line for line in text.split("\n") if line.strip()]
    return {
        "min_sentences": sum(sentences(line) for line in text.split("\n")),
        "min_punctuated_line_ratio": sum(has(line[-1], ENDS_LINE) for line in lines) / len(lines),
        "max_short_line_ratio": sum(len(line) <= short for line in lines) / len(lines),
        "max_repeated_line_ratio": repeated(lines)[1] / len(text.replace("\n", "")),
        "max_line_end_ratio": text.count("\n") / len(words_of(text)),
    }


def sentences(line: str) -> int:
    count, ended = 0, False
    # what spaCy takes for a word: also white space that is not one plain space between two words
    for place, chunk in enumerate(re.findall(r"\S+|\s+", line)):
        if chunk.isspace():
            parts = ["\n"] if chunk != " " else []
        else:
            parts = words_of(chunk)
        for part in parts:
            is_end = len(part) == 1 and has(part, SENTENCE_END)
            if place == 0 and not count:
                count, ended = 1, is_end
            elif ended and not is_end and not all(has(c, PUNCTUATION) for c in part):
                count, ended = count + 1, False
            else:
                ended |= is_end
    return count


def kept_lines(text: str, on: dict[str, float]) -> str | None:
    """The text that C4's rules leave; None: they drop the document."""
    kept = []
    for line in (line.strip() for line in text.split("\n")):
        words = line.split()
        if any(len(word) > on["max_line_word_length"] for word in words):
            continue
        if on["drop_citations"]:
            line = re.sub(r"\[[0-9]*\]|\[edit\]|\[citation needed\]", "", line)
        if on["drop_unpunctuated_lines"] and (not line.endswith((".", "?", "!", '"', "'")) or line.endswith("...")):
            continue
        if len(words) < on["min_line_words"]:
            continue
        lower = line.lower()
        if on["drop_lorem_ipsum"] and "lorem ipsum" in lower:
            return None
        if on["drop_javascript_lines"] and "javascript" in lower:
            continue
        if on["drop_curly_brackets"] and "{" in line:
            return None
        phrases = ("terms of use", "privacy policy", "cookie policy", "uses cookies", "use of cookies", "use cookies")
        if on["drop_policy_lines"] and any(phrase in lower for phrase in phrases):
            continue
        kept.append(line)
    return "\n".join(kept).strip()
