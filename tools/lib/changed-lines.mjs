import { execFileSync } from 'node:child_process';

// A function that says of a line whether it is other than in the commit `base`, or new.
export function changedLines(base, file) {
  const diff = execFileSync('git', ['diff', '-U0', base, '--', file], { encoding: 'utf8' });
  const hunks = Array.from(diff.matchAll(/^@@ -\S+ \+(\d+)(?:,(\d+))? @@/gm), ([, first, count = '1']) =>
    [Number(first), Number(first) + Number(count)]);
  return (line) => hunks.some(([first, end]) => line >= first && line < end);
}
