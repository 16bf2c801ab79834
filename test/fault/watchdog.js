'use strict';

// Ends the process when a case of fault.js makes no progress for a minute: not a
// limit on how long one takes. A Worker, since the main thread's loop may be what
// does not turn.

const fs = require('fs');
const { workerData: { progress, names, seed } } = require('worker_threads');

for (;;) {
  const index = progress[0];
  if (Atomics.wait(progress, 0, index, 60_000) !== 'timed-out')
    continue;
  fs.writeSync(1, `not ok - ${names[index]}: hangs (seed ${seed})\n` +
                  `${progress[1]} passed, ${index - progress[1] + 1} failed\n`);
  process.kill(process.pid, 'SIGKILL');
}
