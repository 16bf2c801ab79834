// usage: lint-errors.mjs FOLDER
// What Node's rules alphabetize-errors and documented-errors ask of the error codes of the Node tree in FOLDER.

import { readFileSync } from 'node:fs';
import { join } from 'node:path';

const [, , folder] = process.argv;
const read = (file) => readFileSync(join(folder, file), 'utf8');

function complain(message) {
  console.error(message);
  process.exitCode = 1;
}

function checkOrder(file, names) {
  for (let i = 1; i < names.length; i++) {
    if (names[i] < names[i - 1])
      complain(`${file}: ${names[i]} belongs before ${names[i - 1]}`);
  }
}

const namesOf = (text, pattern) => Array.from(text.matchAll(pattern), (match) => match[1]);
const codes = namesOf(read('lib/internal/errors.js'), /^E\('([A-Z0-9_]+)'/gm);
const documentation = read('doc/api/errors.md');

if (codes.length === 0)
  complain('lib/internal/errors.js has no error codes');
checkOrder('lib/internal/errors.js', codes);
for (const section of documentation.split(/^## /m))
  checkOrder('doc/api/errors.md', namesOf(section, /^### `([A-Z0-9_]+)`$/gm));
for (const code of codes) {
  if (!documentation.includes(`\n<a id="${code}"></a>\n\n### \`${code}\`\n`))
    complain(`doc/api/errors.md: ${code} is missing, or has no anchor`);
}
