'use strict';

// Processes, and the two network namespaces that the tests put them in: 'a' is the
// one that this process is in.

const assert = require('assert');
const { spawn, spawnSync } = require('child_process');
const path = require('path');

const kRepo = path.join(__dirname, '../..');
const kExec = `${kRepo}/out/tun-exec`;

// What a test waits for may never come. The longest test takes half a minute on a quiet machine.
const kStuckAfter = 5 * 60_000;

const running = new Set();

// A process, and what it prints: line by line, in the order in which it is asked for.
class Process {
  #waiting = [];
  #rest = '';
  lines = [];
  output = '';

  constructor(ns, command, env = {}, stdin = 'ignore') {
    const args = inNamespace(ns, command);
    this.name = command.join(' ');
    this.child = spawn(args[0], args.slice(1), {
      env: { ...process.env, ...env },
      stdio: [stdin, 'pipe', 'pipe'],
    });
    running.add(this);
    for (const stream of [this.child.stdout, this.child.stderr])
      stream.setEncoding('utf8').on('data', (text) => this.#take(text));
    this.exited = new Promise((resolve) => {
      this.child.on('error', (err) => this.#take(`${err}\n`));
      this.child.on('close', (code, signal) => {
        running.delete(this);
        for (const { pattern, reject } of this.#waiting)
          reject(new Error(`${this.name} has ended (${code ?? signal}) without ${pattern}:\n${this.output}`));
        resolve(code ?? signal);
      });
    });
  }

  #take(text) {
    this.output += text;
    const lines = (this.#rest + text).split('\n');
    this.#rest = lines.pop();
    this.lines.push(...lines);
    this.#match();
  }

  #match() {
    for (;;) {
      const { 0: first } = this.#waiting;
      if (first === undefined)
        return;
      const i = this.lines.findIndex((line) => first.pattern.test(line));
      if (i < 0)
        return;
      this.#waiting.shift();
      first.resolve(first.pattern.exec(this.lines[i]));
      this.lines.splice(0, i + 1);
    }
  }

  // The match of the next line that does.
  next(pattern) {
    return new Promise((resolve, reject) => {
      this.#waiting.push({ pattern, resolve, reject });
      this.#match();
    });
  }

  async kill(signal = 'SIGKILL') {
    this.child.kill(signal);
    return this.exited;
  }

  // Its output, if it ends well.
  async done() {
    const code = await this.exited;
    if (code !== 0)
      throw new Error(`${this.name} has ended with ${code}:\n${this.output}`);
    return this.output;
  }
}

let other;

function inNamespace(ns, command) {
  return ns === 'b' ? ['nsenter', `--net=/proc/${other.pid}/ns/net`, ...command] : command;
}

function start(ns, command, env, stdin) {
  return new Process(ns, command, env, stdin);
}

// To its end; the output.
function run(ns, command) {
  const args = inNamespace(ns, command);
  const options = { encoding: 'utf8', timeout: kStuckAfter, killSignal: 'SIGKILL' };
  const { status, stdout, stderr, error } = spawnSync(args[0], args.slice(1), options);
  if (status !== 0)
    throw error ?? new Error(`${args.join(' ')}: ${stderr}${stdout}`);
  return stdout;
}

function ip(ns, text) {
  return run(ns, ['ip', ...text.split(' ')]);
}

// A few at once; it compares what comes back with what it has sent. One each, since it does not wait for the others once
// one has come.
async function ping(from, to, size = 56, count = 3) {
  const command = ['ping', '-n', '-q', '-c', '1', '-W', '10', '-s', `${size}`, to];
  const outputs = await Promise.all(Array.from({ length: count }, () => start(from, command).done()));
  for (const output of outputs) {
    assert.match(output, /1 packets transmitted, 1 received, 0% packet loss/);
    assert.doesNotMatch(output, /wrong data|DUP|errors/);
  }
}

// Until one has come back: what fills the queues of the devices may leave no room for the first.
function pingUntilAnswered(from, to, size = 56) {
  return start(from, ['ping', '-n', '-q', '-c', '1', '-i', '0.2', '-w', '10', '-s', `${size}`, to]).done();
}

// Namespace 'b', and a cable between the two: 192.0.2.1 here, 192.0.2.2 there.
async function setUp() {
  other = spawn('unshare', ['--net', 'sh', '-c', 'echo; exec sleep infinity'], { stdio: ['ignore', 'pipe', 'inherit'] });
  await new Promise((resolve) => other.stdout.once('data', resolve));
  ip('a', `link add cable type veth peer name cable netns ${other.pid}`);
  for (const ns of ['a', 'b']) {
    ip(ns, 'link set lo up');
    ip(ns, `address add 192.0.2.${ns === 'a' ? 1 : 2}/24 dev cable`);
    ip(ns, 'link set cable up');
  }
}

function tearDown() {
  for (const { child } of running)
    child.kill('SIGKILL');
  other.kill('SIGKILL');
}

async function killAll() {
  await Promise.all([...running].map((one) => one.kill()));
}

// What the processes that run now have printed.
function outputs() {
  return [...running].map(({ name, output }) => `--- ${name}\n${output.slice(-2000)}`).join('\n');
}

module.exports = { ip, kExec, kRepo, kStuckAfter, killAll, outputs, ping, pingUntilAnswered, run, setUp, start, tearDown };
