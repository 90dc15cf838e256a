"""From markup to plain text: HTML and MediaWiki."""

import html
import re

# Templates and tables without another one inside; removed from the inside out.
INNERMOST = re.compile(r"\{\{[^{}]*\}\}|\{\|(?:(?!\{\|).)*?\|\}", re.DOTALL)

# Pictures, categories and links to other languages; a picture's caption may hold links of its own.
NAMESPACE_LINK = re.compile(
    r"\[\[ *(?:File|Image|Category|Media|[a-z-]{2,12}) *:[^\[\]]*(?:\[\[[^\[\]]*\]\][^\[\]]*)*\]\]", re.IGNORECASE
)


def plain_text(page: str) -> str:
    """Strip HTML tags, keeping the line structure they stood for."""
    page = re.sub(r"(?is)<(script|style|head|nav|noscript|button|svg)\b.*?</\1>", " ", page)
    page = re.sub(r"(?is)<!--.*?-->", " ", page)
    page = re.sub(r"\s*\n\s*", " ", page)
    page = re.sub(r"(?i)<(br|/p|/div|/li|/h\d|/tr|/dt|/dd|/pre|/table)\b[^>]*>", "\n", page)
    page = html.unescape(re.sub(r"(?s)<[^>]+>", "", page))
    page = re.sub(r"[ \t\xa0]+", " ", page)
    page = re.sub(r" ?\n ?", "\n", page)
    return re.sub(r"\n{2,}", "\n", page).strip()


def plain_wikitext(markup: str) -> str:
    """Strip templates, tables, references, files and links of MediaWiki markup; headings stay as `==...==`."""
    text = re.sub(r"(?s)<!--.*?-->", "", markup)
    text = re.sub(r"(?is)<ref[^>/]*/>|<ref\b.*?</ref>|<(math|gallery|timeline|code|pre)\b.*?</\1>", "", text)
    while INNERMOST.search(text):
        text = INNERMOST.sub("", text)
    # Braces that never close (truncated templates) go with the rest of their line.
    text = re.sub(r"\{\{.*|^\|.*|^!.*|.*\}\}", "", text, flags=re.MULTILINE)
    text = NAMESPACE_LINK.sub("", text)
    text = re.sub(r"\[\[(?:[^|\[\]]*\|)?([^\[\]]*)\]\]", r"\1", text)
    text = re.sub(r"\[(?:https?|ftp)://\S+ ?([^\]]*)\]", r"\1", text)
    text = re.sub(r"'{2,}|__[A-Z]+__", "", text)
    text = html.unescape(re.sub(r"<[^>]+>", "", text)).replace("\xa0", " ")
    text = re.sub(r"^[*#:;]+ *", "", text, flags=re.MULTILINE)
    text = re.sub(r"\(\s*[;,]?\s*\)", "", text)
    text = re.sub(r" +([,.;])", r"\1", text)
    return re.sub(r"[ \t]+", " ", text)
