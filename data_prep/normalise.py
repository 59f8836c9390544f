"""One spelling of each character, before texts are compared, hashed or tokenised. Pure."""
import re
from unicodedata import normalize

# Controls that end a line, a page or a record, as str.splitlines has them; without a line feed they would glue words.
LINE_ENDS = re.compile("\r\n|[\r\x0b\x0c\x1c-\x1e\x85]")
# All but tab and line feed: C0, DEL and C1 controls, the byte order mark, and what is no character in any text.
CONTROLS = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\ufeff\ufff9-\ufffb\ufffe\uffff]")


def normalise(text: str) -> str:
    """Unicode's NFC, lines that end in a line feed alone, no control characters, no white space at the ends.

    NFC, not NFKC: it changes how a character is stored, never which one it is. Joiners (U+200C, U+200D) and marks of
    direction stay: in Persian and the scripts of India they are spelling.

    Source:
        Unicode Standard Annex #15.
    """
    text = LINE_ENDS.sub("\n", text).replace("\x1f", " ")  # which separates units, as a space does words
    return normalize("NFC", CONTROLS.sub("", text)).strip()
