'use strict';

// Loaded (--require) into each thread of a program of tools/examples, so that pool.js can break that program from
// outside. No Worker can start while there is a file named 'broken'. In the main thread, SIGALRM terminates a Worker,
// and SIGHUP calls process.exit(). In a Worker, a TLS client can ask for a failure by the name of the server that it
// asks for (SNI).

const fs = require('node:fs');
const net = require('node:net');
const tls = require('node:tls');
const workers = require('node:worker_threads');

const failures = {
  'throw.example'() {
    setImmediate(() => {
      throw new Error('as the client has asked for');
    });
  },
  'exit.example'() {
    process.exit(7);
  },
};

if (workers.isMainThread) {
  const running = new Set();
  workers.Worker = class extends workers.Worker {
    constructor(...args) {
      super(...args);
      running.add(this);
      this.once('exit', () => running.delete(this));
    }
  };
  process.on('SIGALRM', () => {
    const [first] = running;
    first.terminate();
  });
  process.on('SIGHUP', () => process.exit(3));
} else {
  if (fs.existsSync('broken'))
    throw new Error('as if the program had been replaced by a broken one');
  // No timeout expires by itself, since a client may be slow because the machine is busy. That of the handshake expires
  // where a client asks for it, just before the handshake is done.
  net.Socket.prototype.setTimeout = function(msecs, callback) {
    if (msecs > 0)
      this.once('timeout', callback);
    else if (this.servername === 'late.example')
      this.emit('timeout');
    return this;
  };
  const { emit } = tls.Server.prototype;
  tls.Server.prototype.emit = function(event, ...args) {
    if (event === 'secureConnection')
      failures[args[0].servername]?.();
    return Reflect.apply(emit, this, [event, ...args]);
  };
}
