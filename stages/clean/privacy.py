"""Replaces e-mail addresses and public IP addresses by ones that belong to nobody.

    ada@lovelace.org at 8.8.8.8 or 2a00:1450::8   ->   email@example.com at 192.0.2.1 or 2001:db8::1

The replacements are reserved for documentation (RFC 2606, 5737, 3849), so the text reads as before, and one
text always gives the same. Private and reserved addresses such as 127.0.0.1 stay: they name nobody. A
version such as 1.2.3.4 looks like a public address and goes too. Names and telephone numbers are not sought.
"""

from __future__ import annotations

import ipaddress
import re

EMAIL, IPV4, IPV6 = "email@example.com", "192.0.2.1", "2001:db8::1"
ADDRESS = re.compile(
    r"(?<![\w.+%-])[A-Za-z0-9][\w.+%-]{0,63}@[A-Za-z0-9](?:[A-Za-z0-9-]*\.)+[A-Za-z]{2,24}\b", re.ASCII
)
NUMBERS = re.compile(r"(?<![\w.:])(?:\d{1,3}\.){3}\d{1,3}(?![\w]|\.\d)", re.ASCII)
GROUPS = re.compile(
    r"(?<![\w:.])[23][0-9A-Fa-f]{3}:[0-9A-Fa-f:]{2,34}(?![\w:])", re.ASCII
)  # 2000::/3 is the public part


def mask(text: str) -> str:
    """The text with addresses replaced."""
    if "@" in text:
        text = ADDRESS.sub(EMAIL, text)
    text = NUMBERS.sub(lambda found: _unless_private(found.group(), IPV4), text)
    return GROUPS.sub(lambda found: _unless_private(found.group(), IPV6), text)


def _unless_private(address: str, replacement: str) -> str:
    try:
        return replacement if ipaddress.ip_address(address).is_global else address
    except ValueError:
        return address
