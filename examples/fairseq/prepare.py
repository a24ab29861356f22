"""Write texts from Debian packages as files for fairseq-preprocess.

apt-get install sword-text-kjv sword-text-sparv dict-gcide
pip install pysword==0.2.8
python prepare.py bible bible      # en-es, verse by verse
python prepare.py gcide gcide      # English, for a language model
"""

from __future__ import annotations

import argparse
import gzip
import re
from collections.abc import Iterator
from pathlib import Path

_TOKEN = re.compile(r"\w+|[^\w\s]")


def tokens(text: str) -> str:
    """Lower-case words and signs, separated by spaces."""
    return " ".join(_TOKEN.findall(text.lower()))


def verses(sword: Path) -> Iterator[tuple[str, str]]:
    """Yield verses that both Bibles have, English and Spanish."""
    from pysword.modules import SwordModules

    modules = SwordModules(str(sword))
    modules.parse_modules()
    english = modules.get_bible_from_module("engKJV2006eb")
    spanish = modules.get_bible_from_module("spaRV1909eb")
    for books in english.get_structure().get_books().values():
        for book in books:
            for chapter, count in enumerate(book.chapter_lengths, 1):
                for verse in range(1, count + 1):
                    place = {"books": book.name, "chapters": chapter, "verses": verse}
                    pair = tokens(english.get(**place)), tokens(spanish.get(**place))
                    if all(pair):
                        yield pair


def write_pairs(pairs: list[tuple[str, str]], folder: Path) -> None:
    """Write every 60th pair for validation, the next for the test, the rest."""
    for remainder, split in ((0, "valid"), (1, "test"), (None, "train")):
        part = [
            pair
            for number, pair in enumerate(pairs)
            if (number % 60 == remainder)
            or (remainder is None and number % 60 not in (0, 1))
        ]
        for side, language in enumerate(("en", "es")):
            lines = "".join(f"{pair[side]}\n" for pair in part)
            (folder / f"{split}.{language}").write_text(lines, encoding="utf-8")
        print(f"{split}: {len(part)} pairs")


def write_text(dictionary: Path, folder: Path, megabytes: float) -> None:
    """Write the beginning of a dictd dictionary, its last tenths apart."""
    with gzip.open(dictionary) as file:
        text = file.read(int(megabytes * 2**20)).decode("utf-8", "replace")
    lines = [tokens(line) for line in text.splitlines() if line.strip()]
    bounds = [0, len(lines) * 8 // 10, len(lines) * 9 // 10, len(lines)]
    for split, begin, end in zip(
        ("train", "valid", "test"), bounds, bounds[1:], strict=False
    ):
        body = "".join(f"{line}\n" for line in lines[begin:end])
        (folder / f"{split}.txt").write_text(body, encoding="utf-8")
        print(f"{split}: {len(body.split())} tokens")


def main() -> None:
    """Run the command."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("text", choices=("bible", "gcide"))
    parser.add_argument("folder", type=Path)
    parser.add_argument("--sword", type=Path, default=Path("/usr/share/sword"))
    parser.add_argument(
        "--dictionary", type=Path, default=Path("/usr/share/dictd/gcide.dict.dz")
    )
    parser.add_argument("--megabytes", type=float, default=5.0)
    options = parser.parse_args()
    options.folder.mkdir(parents=True, exist_ok=True)
    if options.text == "bible":
        write_pairs(list(verses(options.sword)), options.folder)
    else:
        write_text(options.dictionary, options.folder, options.megabytes)


if __name__ == "__main__":
    main()
