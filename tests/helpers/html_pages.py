"""What is in an HTML page, by the parser of the standard library."""

import html.parser

VOID = {"meta", "input", "br", "link", "image", "use", "path", "circle"}


class Parsed(html.parser.HTMLParser):
    """Tags with their attributes, and the texts below each kind of them."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.texts, self.open = [], {}, []
        self.feed(text)
        self.close()
        assert not self.open, self.open

    def handle_starttag(self, tag, attributes):
        assert len({name for name, _ in attributes}) == len(attributes)
        self.tags.append((tag, dict(attributes)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        for tag in set(self.open):
            self.texts.setdefault(tag, []).append(data)

    def attributes(self, name):
        """All values of an attribute."""
        return [x[name] for _, x in self.tags if name in x]

    def text(self, tag="body"):
        return "".join(self.texts.get(tag, ()))
