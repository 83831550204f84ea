"""Talk, at a terminal or over HTTP."""

from ft.chat.conversation import Conversation as Conversation
from ft.chat.openai_server import Server as Server
from ft.chat.partner import Partner as Partner
from ft.chat.partner import load as load
from ft.chat.session import Chat as Chat
