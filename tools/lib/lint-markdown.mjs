// usage: lint-markdown.mjs BASE FILE...
// Node's lint-md, but for what it says of lines that are in the commit BASE as they are: some link to what only a
// checkout of Node has.

import { spawnSync } from 'node:child_process';
import { changedLines } from './changed-lines.mjs';

const { argv: [, , base, ...files], execPath } = process;

for (const file of files) {
  const { status, stderr } = spawnSync(execPath, ['tools/lint-md/lint-md.mjs', file], { encoding: 'utf8' });
  if (status === 0)
    continue;
  const isChanged = changedLines(base, file);
  const lines = stderr.split('\n').filter((line) => {
    const position = /^\s*(\d+):\d+/.exec(line);
    // The others are the name of the file, and how many lines there are.
    return position ? isChanged(Number(position[1])) : !/^$|^\S+\.md$|^⚠ /.test(line.trim());
  });
  if (lines.length !== 0) {
    console.error([file, ...lines].join('\n'));
    process.exitCode = 1;
  }
}
