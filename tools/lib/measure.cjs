'use strict';

// --require this into a server to measure it without a line of its own: for
// each line on its input it appends to the file $MEASURE what the process has
// used since the line before, in seconds, as JSON: `cpu` is user and system
// time of all its threads, `loop` the time in which the event loop did not
// wait. The input reaches it in a sandbox, where a signal would not: its
// process has another number there.

const fs = require('node:fs');
const { performance } = require('node:perf_hooks');

let cpu = process.cpuUsage();
let loop = performance.eventLoopUtilization();

process.stdin.on('data', () => {
  const { user, system } = process.cpuUsage(cpu);
  const { active } = performance.eventLoopUtilization(loop);
  cpu = process.cpuUsage();
  loop = performance.eventLoopUtilization();
  const line = { cpu: (user + system) / 1e6, loop: active / 1e3 };
  fs.appendFileSync(process.env.MEASURE, `${JSON.stringify(line)}\n`);
});
