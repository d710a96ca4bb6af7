// Markdown to DOM nodes: fenced code, headings, lists, quotes, rules, paragraphs; code, bold, italic and links within a line.
// Text becomes text nodes and nothing is ever parsed as HTML, so what a model writes cannot become part of the page.

function element(tag, className, ...children) {
  const node = document.createElement(tag);
  if (className) node.className = className;
  node.append(...children);
  return node;
}

// The first match of each pattern at the earliest place wins; what lies before it is plain text.
const INLINE = [
  { pattern: /(`+)([^`]|[^`][\s\S]*?[^`])\1(?!`)/, build: (m) => element("code", "", m[2].replace(/^ (.+) $/, "$1")) },
  { pattern: /\*\*(?=\S)([\s\S]*?\S)\*\*/, build: (m) => element("strong", "", ...inline(m[1])) },
  { pattern: /(?<![\w*])\*(?=[^\s*])([^*]*?[^\s*])\*(?![\w*])/, build: (m) => element("em", "", ...inline(m[1])) },
  { pattern: /(?<![\w_])_(?=[^\s_])([^_]*?[^\s_])_(?![\w_])/, build: (m) => element("em", "", ...inline(m[1])) },
  { pattern: /\[([^\[\]\n]+)\]\((https?:\/\/[^\s()<>]+)\)/, build: (m) => link(m[2], inline(m[1])) },
  { pattern: /https?:\/\/[^\s<>()"'`]+[^\s<>()"'`.,;:!?]/, build: (m) => link(m[0], [m[0]]) },
];

function link(address, children) {
  const node = element("a", "", ...children);
  node.href = address;
  node.target = "_blank";
  node.rel = "noopener noreferrer";
  return node;
}

function inline(text) {
  const nodes = [];
  while (text) {
    let first = null;
    for (const { pattern, build } of INLINE) {
      const match = pattern.exec(text);
      if (match && (!first || match.index < first.match.index)) first = { match, build };
    }
    if (!first) break;
    if (first.match.index > 0) nodes.push(text.slice(0, first.match.index));
    nodes.push(first.build(first.match));
    text = text.slice(first.match.index + first.match[0].length);
  }
  if (text) nodes.push(text);
  return nodes;
}

function codeBlock(language, lines) {
  const code = element("code", "", lines.join("\n"));
  const copy = element("button", "", "Copy");
  copy.type = "button";
  copy.dataset.copy = "code";
  return element("div", "code", element("div", "bar-top", element("span", "", language || "text"), copy), element("pre", "", code));
}

const FENCE = /^\s*(`{3,}|~{3,})\s*([\w+#.-]*)/;
const HEADING = /^(#{1,6})\s+(.*?)\s*#*$/;
const ITEM = /^(\s*)([-*+]|\d{1,9}[.)])\s+(.*)$/;
const RULE = /^\s*([-*_])(\s*\1){2,}\s*$/;
const QUOTE = /^\s*>\s?/;

const isOrdered = (line) => /^\s*\d/.test(line);

// Consecutive items, nested by indentation.
function list(lines) {
  const stack = [];
  let root = null;
  for (const line of lines) {
    const match = ITEM.exec(line);
    if (!match) {
      stack.at(-1).item.append("\n", ...inline(line.trim()));
      continue;
    }
    const indent = match[1].length;
    const ordered = /\d/.test(match[2]);
    while (stack.length > 1 && indent < stack.at(-1).indent) stack.pop();
    if (!stack.length || indent > stack.at(-1).indent + 1) {
      const node = element(ordered ? "ol" : "ul");
      if (ordered) node.start = parseInt(match[2], 10);
      if (stack.length) stack.at(-1).item.append(node);
      else root = node;
      stack.push({ node, indent, item: null });
    }
    const item = element("li", "", ...inline(match[3]));
    stack.at(-1).node.append(item);
    stack.at(-1).item = item;
  }
  return root;
}

function withBreaks(lines) {
  const nodes = [];
  lines.forEach((line, i) => {
    if (i > 0) nodes.push(element("br"));
    nodes.push(...inline(line));
  });
  return nodes;
}

// Deeper than any answer means, and far below where a browser's stack ends: a small model may write nothing but ">" for pages.
const QUOTES_MAX = 16;

export function renderMarkdown(text, quotes = 0) {
  const blocks = [];
  const lines = text.replace(/\r\n?/g, "\n").split("\n");
  const isQuote = (line) => quotes < QUOTES_MAX && QUOTE.test(line);
  for (let i = 0; i < lines.length;) {
    const line = lines[i];
    const fence = FENCE.exec(line);
    if (fence) {
      const body = [];
      for (++i; i < lines.length && !(lines[i].trim().startsWith(fence[1]) && !lines[i].trim().replaceAll(fence[1][0], "")); ++i) body.push(lines[i]);
      ++i;
      blocks.push(codeBlock(fence[2], body));
      continue;
    }
    if (!line.trim()) {
      ++i;
      continue;
    }
    const heading = HEADING.exec(line);
    if (heading) {
      blocks.push(element(`h${Math.min(6, heading[1].length + 2)}`, "", ...inline(heading[2])));
      ++i;
      continue;
    }
    if (RULE.test(line)) {
      blocks.push(element("hr"));
      ++i;
      continue;
    }
    if (isQuote(line)) {
      const body = [];
      for (; i < lines.length && isQuote(lines[i]); ++i) body.push(lines[i].replace(QUOTE, ""));
      blocks.push(element("blockquote", "", ...renderMarkdown(body.join("\n"), quotes + 1)));
      continue;
    }
    if (ITEM.test(line)) {
      const body = [];
      const ordered = isOrdered(line);
      for (; i < lines.length; ++i) {
        const continued = /^\s{2,}\S/.test(lines[i]) && !FENCE.test(lines[i]);
        const next = lines[i + 1] ?? "";
        const gap = !lines[i].trim() && ITEM.test(next) && (/^\s{2}/.test(next) || isOrdered(next) === ordered);
        if (!ITEM.test(lines[i]) && !continued && !gap) break;
        if (!gap) body.push(lines[i]);
      }
      blocks.push(list(body));
      continue;
    }
    const body = [];
    for (; i < lines.length && lines[i].trim() && !FENCE.test(lines[i]) && !HEADING.test(lines[i]) && !isQuote(lines[i]) &&
           !(body.length && (ITEM.test(lines[i]) || RULE.test(lines[i]))); ++i) {
      body.push(lines[i]);
    }
    blocks.push(element("p", "", ...withBreaks(body)));
  }
  return blocks;
}
