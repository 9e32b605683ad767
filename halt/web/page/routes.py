"""The routes of the chat page."""

from __future__ import annotations

from flask import Blueprint

from halt.web.page import accounts, conversations, login, manifest, messages, models, streams

blueprint = Blueprint("pages", __name__)

for path, view in (
    ("/", conversations.index),
    ("/c/<conversation_id>", conversations.show_conversation),
    ("/c/<conversation_id>/exchanges", conversations.exchanges),
    ("/c/<conversation_id>/from", conversations.exchanges_from_prompt),
    ("/c/<conversation_id>/usage", conversations.usage),
    ("/demo", models.demo),
    ("/manifest.webmanifest", manifest.manifest),
    ("/models", models.models),
    ("/saving", streams.saving_status),
    ("/streams/<stream_id>/page", streams.stream),
    ("/streams/<stream_id>/pictures", streams.pictures),
):
    blueprint.add_url_rule(path, view_func=view)

for path, view in (
    ("/c/<conversation_id>/messages", messages.send),
    ("/c/<conversation_id>/stop", messages.stop),
    ("/c/<conversation_id>/regenerate", messages.regenerate),
    ("/c/<conversation_id>/continue", messages.continue_),
    ("/c/<conversation_id>/discard", conversations.discard),
    ("/c/<conversation_id>/edit-answer", conversations.edit_answer),
    ("/c/<conversation_id>/pick", conversations.select_answer),
    ("/c/<conversation_id>/show", conversations.show),
):
    blueprint.add_url_rule(path, view_func=view, methods=["POST"])

blueprint.add_url_rule("/link", view_func=accounts.link, methods=["GET", "POST"])
blueprint.add_url_rule("/logout", view_func=login.logout, methods=["POST"])
blueprint.add_url_rule("/login", view_func=login.login, methods=["GET", "POST"])
