'use strict';

// Loaded (--require) into a tunnel of tun.js: at SIGALRM the main thread computes, and never comes to an end.

const fs = require('node:fs');
const { isMainThread } = require('node:worker_threads');

if (isMainThread) {
  process.on('SIGALRM', () => {
    fs.writeSync(1, 'computing\n');
    for (;;);
  });
}
