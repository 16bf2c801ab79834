// usage: lint-links.mjs FOLDER FILE.md...
// Whether what these documents link to, in the documentation that FOLDER has as HTML, is there, down to the heading.

import { existsSync, readFileSync } from 'node:fs';
import { basename, join } from 'node:path';

const { argv: [, , folder, ...files] } = process;
const anchors = new Map();

function anchorsOf(page) {
  if (!anchors.has(page)) {
    const file = join(folder, page);
    const html = existsSync(file) ? readFileSync(file, 'utf8') : '';
    anchors.set(page, new Set(Array.from(html.matchAll(/ id="([^"]+)"/g), (match) => match[1])));
  }
  return anchors.get(page);
}

for (const file of files) {
  const page = `${basename(file, '.md')}.html`;
  const html = readFileSync(join(folder, page), 'utf8');
  const links = new Set();
  for (const [, to = page, anchor] of html.matchAll(/ href="([^"#/:]+\.html)?#([^"]+)"/g))
    links.add(`${to}#${anchor}`);
  for (const link of links) {
    const [to, anchor] = link.split('#');
    // Which Node does not publish yet.
    if (to === 'quic.html')
      continue;
    if (!anchorsOf(to).has(decodeURIComponent(anchor))) {
      console.error(`${file}: there is no ${link}`);
      process.exitCode = 1;
    }
  }
}
