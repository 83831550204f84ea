"""Talk, at a terminal or over HTTP."""

from ft.chat.conversation import Conversation
from ft.chat.partner import Partner, load
from ft.chat.session import Chat

__all__ = [
    "Chat",
    "Conversation",
    "load",
    "Partner",
]
