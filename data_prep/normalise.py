"""One spelling of each character, before texts are compared, hashed or tokenised. Pure."""
import re
from unicodedata import normalize

# All but tab and line feed: C0, DEL and C1 controls, the byte order mark, and what is no character in any text.
CONTROLS = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\ufeff\ufff9-\ufffb\ufffe\uffff]")


def normalise(text: str) -> str:
    """Unicode's NFC, lines that end in a line feed alone, no control characters, no white space at the ends.

    NFC, not NFKC: it changes how a character is stored, never which one it is. Joiners (U+200C, U+200D) and marks of
    direction stay: in Persian and the scripts of India they are spelling.

    Source:
        Unicode Standard Annex #15.
    """
    text = text.replace("\r\n", "\n").replace("\r", "\n")
    return normalize("NFC", CONTROLS.sub("", text)).strip()
