// usage: changed.mjs BASE FILE...
// eslint of files that were only changed: what it says of the lines that are not in the commit BASE.

import { ESLint } from 'eslint';
import { changedLines } from './changed-lines.mjs';

const { argv: [, , base, ...files] } = process;

const eslint = new ESLint();
const results = await eslint.lintFiles(files);
for (const result of results) {
  const isChanged = changedLines(base, result.filePath);
  // A fatal error may be of any line.
  result.messages = result.messages.filter(({ fatal, line }) => fatal || isChanged(line));
  result.errorCount = result.messages.filter(({ severity }) => severity === 2).length;
  result.warningCount = result.messages.length - result.errorCount;
  result.fixableErrorCount = result.fixableWarningCount = 0;
}
const text = await (await eslint.loadFormatter()).format(results);
if (text !== '') {
  console.error(text);
  process.exitCode = 1;
}
