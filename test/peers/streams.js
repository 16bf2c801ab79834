'use strict';

// What the tests have at both ends: programs with a stdin and a stdout, and streams of this process.

const net = require('net');
const { spawn } = require('child_process');
const { createHash } = require('crypto');
const { EventEmitter, once } = require('events');

// What has come out of a stream. `end` is 'end', or the error.
class Received {
  #chunks = [];
  #waiting = [];
  length = 0;

  constructor(readable) {
    readable.on('data', (chunk) => {
      this.#chunks.push(chunk);
      this.length += chunk.length;
      this.#tell();
    });
    this.end = new Promise((resolve) => {
      readable.once('end', () => resolve('end'));
      readable.once('error', (err) => resolve(err.code));
      readable.once('close', () => resolve('close'));
    });
    this.end.then(() => this.#tell(Infinity));
  }

  #tell(length = this.length) {
    this.#waiting = this.#waiting.filter(({ size, resolve }) => size > length || resolve());
  }

  // When there are that many bytes, or nothing more will come.
  async atLeast(size) {
    if (this.length < size)
      await Promise.race([this.end, new Promise((resolve) => this.#waiting.push({ size, resolve }))]);
  }

  get bytes() {
    return Buffer.concat(this.#chunks);
  }

  toString() {
    return this.bytes.toString();
  }
}

const running = new Set();

class Program {
  #news = new EventEmitter();

  constructor(command) {
    this.name = command.join(' ');
    // Between two pipes, since some programs cannot do with the sockets that Node has at their end.
    const script = '"$@" < <(cat) | cat';
    this.child = spawn('bash', ['-o', 'pipefail', '-c', script, 'bash', ...command], { detached: true });
    running.add(this);
    // It may have ended without reading all of it. What the test expects of it fails then.
    this.child.stdin.on('error', () => {});
    this.stdin = this.child.stdin;
    this.stdout = new Received(this.child.stdout);
    this.stderr = new Received(this.child.stderr);
    for (const stream of [this.child.stdout, this.child.stderr])
      stream.on('data', () => this.#news.emit('news'));
    this.exited = new Promise((resolve) => {
      this.child.on('error', resolve);
      this.child.on('close', (code, signal) => resolve(code ?? signal));
    });
    this.exited.then((status) => {
      running.delete(this);
      this.status = status;
      this.#news.emit('news');
    });
  }

  // The match, once it has printed that.
  async printed(pattern) {
    for (;;) {
      const match = pattern.exec(`${this}`);
      if (match)
        return match;
      if (this.status !== undefined)
        throw new Error(`${this.name} has ended (${this.status}) without ${pattern}:\n${this}`);
      await once(this.#news, 'news');
    }
  }

  // When it listens on that port, if it does not say so.
  async listening(port) {
    while (this.status === undefined && !(await canConnect(port)));
  }

  toString() {
    return `${this.stderr}${this.stdout}`;
  }
}

function canConnect(port) {
  return new Promise((resolve) => {
    const socket = net.connect({ port, host: '127.0.0.1' });
    socket.on('error', () => resolve(false));
    socket.on('connect', () => {
      socket.destroy();
      resolve(true);
    });
  });
}

function killPrograms() {
  return Promise.all(Array.from(running, ({ child, exited }) => {
    process.kill(-child.pid, 'SIGKILL');
    return exited;
  }));
}

function digest(bytes) {
  return `${bytes.length} ${createHash('sha256').update(bytes).digest('hex').slice(0, 16)}`;
}

module.exports = { digest, killPrograms, Program, Received };
