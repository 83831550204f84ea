"""What marks a text as noisy: the loops of a model; the capitals, emoji, slang and typos of people."""

import re
from collections import Counter

KINDS = ("caps", "emoji", "slang", "typos")
_SHOUTED = re.compile(r"\b[^\W\d_a-zà-ÿ]{4,}\b")
_EMOJI = re.compile(
    "[\U0001f000-\U0001faff\u2600-\u27bf\u2b50\u2b55]"
    r"|(?<!\w)[:;=8xX]['\-]?[)(DPpOo/\\|*3](?!\w)|<3+|\^_+\^|¯\\_|(?<!\w)[xX][dD]+(?!\w)"
)
_SLANG = re.compile(
    r"(?<![\w'’])(?:lol+|lmf?ao+|rofl|omf?g|wtf+|idk|idc|imo|imho|tbh|ngl|smh|fml|irl|iirc|afaik|ffs"
    r"|fyi|btw|brb|asap|tl;?dr|eli5|til|ama|nsfw|dm|op|gg|u|ur|r|ya|yall|y['’]all|yo|bruh?|bro|dude|fam"
    r"|gonna|gotta|wanna|kinda|sorta|dunno|lemme|gimme|ain['’]?t|cuz|coz|bc|tho|thru|rn|thx|pls|plz|ppl"
    r"|sus|lit|lowkey|highkey|yeet|yolo|noob|af|bs|fuck\w*|shit\w*|crap|damn|hell|meh|nah|nope|yep|yup"
    r"|yeah|wow|ha(?:ha)+h?|mdr+|ptdr+|jsp|chais|bcp|pk|pcq|tkt|osef|wesh|stp|svp|dsl|ouf|relou)(?!\w)",
    re.IGNORECASE,
)
_TYPOS = re.compile(
    r"(?<![\w'’])(?:(?-i:i)(?=['’\s])|im|ive|dont|doesnt|didnt|cant|couldnt|wont|wouldnt"
    r"|shouldnt|isnt|arent|wasnt|werent|havent|hasnt|hadnt|thats|whats|theres|youre|theyre|youve|alot"
    r"|teh|thier|recieve\w*|definat\w*|definit(?:l|e)y|seperat\w*|wierd\w*|untill|wich|becuase|beacuse"
    r"|probly|prolly|tommorow|realy|basicly|occured|loosing|noone|should of|could of|would of)(?!\w)"
    r"|([^\W\d_])\1{2,}",
    re.IGNORECASE,
)


def kinds(text: str) -> set[str]:
    """Which of ``KINDS`` a person's text shows: by patterns, of English mostly, and so a rough guess."""
    found = zip(KINDS, (_SHOUTED, _EMOJI, _SLANG, _TYPOS), strict=True)
    return {kind for kind, pattern in found if pattern.search(text)}


def loops(text: str, n: int = 4, times: int = 4) -> bool:
    """Whether some ``n`` words in a row come ``times`` or more: a model that did not find its end.

    Of a text without spaces, 2 ``n`` characters in a row.
    """
    words = text.split()
    parts, n = (words, n) if len(words) > 1 else (text.strip(), 2 * n)
    grams = Counter(zip(*(parts[i:] for i in range(n)), strict=False))
    return max(grams.values(), default=0) >= times
