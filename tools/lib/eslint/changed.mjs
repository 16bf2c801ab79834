// usage: changed.mjs BASE FILE...
// eslint of files that were only changed: what it says of the lines that are not in the commit BASE.

import { execFileSync } from 'node:child_process';
import { ESLint } from 'eslint';

const { argv: [, , base, ...files] } = process;

// As pairs of a first line and the one after the last.
function changedLines(file) {
  const diff = execFileSync('git', ['diff', '-U0', base, '--', file], { encoding: 'utf8' });
  return Array.from(diff.matchAll(/^@@ -\S+ \+(\d+)(?:,(\d+))? @@/gm), ([, first, count = '1']) =>
    [Number(first), Number(first) + Number(count)]);
}

const eslint = new ESLint();
const results = await eslint.lintFiles(files);
for (const result of results) {
  const lines = changedLines(result.filePath);
  // A fatal error may be of any line.
  result.messages = result.messages.filter(({ fatal, line }) =>
    fatal || lines.some(([first, end]) => line >= first && line < end));
  result.errorCount = result.messages.filter(({ severity }) => severity === 2).length;
  result.warningCount = result.messages.length - result.errorCount;
  result.fixableErrorCount = result.fixableWarningCount = 0;
}
const text = await (await eslint.loadFormatter()).format(results);
if (text !== '') {
  console.error(text);
  process.exitCode = 1;
}
