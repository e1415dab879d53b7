"""`nightfill profile --register`: contexts of the prefixes that were found."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from nightfill.contexts import Messages, Tenant, content_bytes, fingerprint_of
from nightfill.contexts.context import MessagesSource, TextSource
from nightfill.contexts.discovery_prompt import found_name
from nightfill.contexts.profile import form_of

if TYPE_CHECKING:
    from collections.abc import Sequence

    from nightfill.cli.workspace import Workspace
    from nightfill.contexts import Content, Form
    from nightfill.contexts.discovery import Finding
    from nightfill.contexts.discovery_prompt import About
    from nightfill.contexts.profile import Contents, Profile
    from nightfill.state.state import State


async def register_findings(
    workspace: Workspace,
    profile: Profile,
    findings: Sequence[Finding[About]],
    contents: Contents,
    *,
    tenant: Tenant | None,
    dry_run: bool,
) -> list[dict[str, Any]]:
    """Make contexts of the findings, for their own tenants or for `tenant`; what became of each, as JSON.

    `did` is `added`, `unchanged`, `would add` or `left`, the last with `why`. Raises StateUnavailable.
    """
    rows: list[dict[str, Any]] = []
    async with workspace.open_state() as state:
        for finding in findings:
            content, form = contents.content(finding), form_of(finding.about)
            if profile.spoils(finding.key):
                content = "a short piece of it changes: see what breaks reuse"
            elif not isinstance(content, str) and content_bytes(content) > workspace.settings.contexts.max_bytes:
                content = "longer than contexts.max_bytes allows"
            if isinstance(content, str) or form is None:
                rows.append({"key": finding.key, "did": "left", "why": content})
                continue
            whose = tenant or Tenant(finding.about.tenant)
            rows.append({"key": finding.key, **await _put(state, whose, content, form, dry_run=dry_run)})
    return rows


async def _put(state: State, tenant: Tenant, content: Content, form: Form, *, dry_run: bool) -> dict[str, Any]:
    fingerprint = fingerprint_of(content)
    name = found_name(fingerprint)
    before = await state.book.get(tenant, name)
    forms = (form,) if before is None else tuple(dict.fromkeys((*before.forms, form)))
    same = before is not None and before.current == fingerprint and tuple(before.forms) == forms
    if not same and not dry_run:
        await state.book.put(
            tenant=tenant,
            name=name,
            source=MessagesSource() if isinstance(content, Messages) else TextSource(),
            content=content,
            fingerprint=fingerprint,
            forms=forms,
            pinned=before is not None and before.pinned,
            ttl_s=before.ttl_s if before is not None else None,
            user=before.user if before is not None else "",
        )
    did = "unchanged" if same else "would add" if dry_run else "added"
    return {"name": name, "tenant": tenant, "did": did, "bytes": content_bytes(content), "form": form}
