'use strict';

// The model test of tlsSocket.spliceTo(): random programs of writes, pauses,
// starts, stops, ends and faults on both sides of splices, against an oracle
// that knows every byte and the documented outcomes. A program that fails is
// made as short as it can be, and printed so that it can be run again.

const { execFileSync, fork } = require('child_process');
const fs = require('fs');
const os = require('os');
const path = require('path');
const { parseArgs } = require('util');
const { format, generate, simpler } = require('./program');

const kUsage = `usage: node test/model/model.js [options]

  --programs N   how many programs (2000)
  --seed S       what they are made from (by default another one each time)
  --only K       program K of the seed alone
  --program P    this one, as it was printed: JSON, or the name of a file with it
  --copies N     with --only and --program: how often (24)
  --jobs N       processes (2)
  --at-once N    programs at the same time in each process (8)
  --shrink S     seconds for making a failing program shorter (60)
  --trace        show what happened in programs that fail

A program fails that has not the outcome it must have, crashes the process, or
in which nothing happens any more for 20 s.`;

const kPatience = 20_000;
// While a program is made shorter, alone.
const kShortPatience = 3000;
const kMostShrunk = 8;
const kBatch = 64;

const { values } = parseArgs({
  options: {
    'programs': { type: 'string', default: '2000' },
    'seed': { type: 'string' },
    'only': { type: 'string' },
    'program': { type: 'string' },
    'copies': { type: 'string', default: '24' },
    'jobs': { type: 'string', default: '2' },
    'at-once': { type: 'string', default: '8' },
    'shrink': { type: 'string', default: '60' },
    'trace': { type: 'boolean', default: false },
    'help': { type: 'boolean', short: 'h', default: false },
  },
});

function number(name) {
  const value = Number(values[name]);
  if (!Number.isSafeInteger(value) || value < 0) {
    console.error(`--${name} takes a number`);
    process.exit(2);
  }
  return value;
}

// The process that knows what a socket does without a splice. It is out/node-stock, which
// has none, where that has been built.
class Twin {
  #process;
  #waiting = new Map();
  node;

  constructor(directory) {
    const stock = path.join(__dirname, '../../out/node-stock');
    this.node = fs.existsSync(stock) ? stock : process.execPath;
    this.#process = fork(path.join(__dirname, 'twin.js'), [directory], { execPath: this.node, execArgv: ['--no-warnings'] });
    this.#process.on('message', ({ id, code }) => {
      this.#waiting.get(id).forEach((answer) => answer(code));
      this.#waiting.delete(id);
    });
    this.#process.on('exit', (code, signal) => {
      throw new Error(`The twin has ended: ${signal ?? `exit code ${code}`}`);
    });
  }

  // Calls back with the code of its error.
  ask({ id, options }, answer) {
    if (this.#waiting.has(id)) {
      this.#waiting.get(id).push(answer);
      return;
    }
    this.#waiting.set(id, [answer]);
    this.#process.send({ id, options });
  }

  close() {
    this.#process.removeAllListeners('exit');
    this.#process.disconnect();
  }
}

// A process that runs programs. It is not used any more after it has died.
class Child {
  #process;
  #output = '';
  #exited;
  #onMessage;
  #silent = 0;
  dead = false;

  constructor(directory, twin) {
    this.#process = fork(path.join(__dirname, 'child.js'), [directory], {
      execArgv: ['--no-warnings'],
      stdio: ['ignore', 'inherit', 'pipe', 'ipc'],
    });
    this.#process.stderr.setEncoding('utf8').on('data', (text) => {
      this.#output = (this.#output + text).slice(-16384);
    });
    this.#process.on('message', (message) => {
      this.#silent = 0;
      if (message.twin) {
        const { twin: { id } } = message;
        twin.ask(message.twin, (code) => this.#process.send({ twin: { id, code } }, () => {}));
        return;
      }
      if (message.crashed)
        this.#output += message.crashed;
      this.#onMessage?.(message);
    });
    this.#exited = new Promise((resolve) => {
      this.#process.on('close', (code, signal) => {
        this.dead = true;
        resolve(`${signal ?? `exit code ${code}`}\n${this.#output}`.trimEnd());
      });
    });
  }

  // Resolves with null, or with what the process has died of.
  run(job, onMessage) {
    return new Promise((resolve) => {
      // It is killed when its event loop does not turn any more.
      this.#silent = 0;
      const watchdog = setInterval(() => {
        if (++this.#silent * 1000 > job.patience + 10_000) {
          this.#output += 'The process does not answer.';
          this.#process.kill('SIGKILL');
        }
      }, 1000);
      const end = (crash) => {
        clearInterval(watchdog);
        resolve(crash);
      };
      this.#exited.then(end);
      this.#onMessage = (message) => {
        onMessage(message);
        if (message.done)
          end(null);
      };
      this.#process.send(job, () => {});
    });
  }

  kill() {
    this.#process.kill('SIGKILL');
    return this.#exited;
  }

  // Resolves with null, or with what it has complained of at its end.
  async close() {
    if (this.dead)
      return null;
    this.#process.send({ quit: true }, () => {});
    const exit = await this.#exited;
    return exit === 'exit code 0' ? null : exit;
  }
}

// Of all messages that say the same about different numbers, the same text.
function kindOf(message) {
  return message.split('\n')[0].replace(/^hangs.*/, 'hangs').replace(/\b[\dA-F]{8,}\b|\d+/g, '#');
}

class Model {
  #directory = fs.mkdtempSync(path.join(os.tmpdir(), 'tls-splice-model-'));
  #seed;
  #twin;
  passed = 0;
  failed = 0;
  #shrunk = new Set();
  #again = [];

  constructor(seed) {
    this.#seed = seed;
    execFileSync('openssl', [
      'req', '-x509', '-newkey', 'ec', '-pkeyopt', 'ec_paramgen_curve:P-256', '-nodes', '-days', '2',
      '-subj', '/CN=localhost', '-keyout', path.join(this.#directory, 'key.pem'),
      '-out', path.join(this.#directory, 'cert.pem'),
    ], { stdio: 'ignore' });
    this.#twin = new Twin(this.#directory);
    console.log(`twins: ${path.relative('', this.#twin.node)}`);
  }

  close() {
    this.#twin.close();
    fs.rmSync(this.#directory, { recursive: true });
  }

  async runAll(count) {
    const batches = [];
    for (let from = 0; from < count; from += kBatch)
      batches.push(Array.from({ length: Math.min(kBatch, count - from) }, (_, i) => from + i));
    await Promise.all(Array.from({ length: number('jobs') }, () => this.#work(batches)));
    for (const { id, crash } of this.#again)
      await this.#report(`program ${id} of seed ${this.#seed}`, generate(this.#seed, id), crash);
  }

  async #work(batches) {
    let child;
    while (batches.length > 0) {
      child = child && !child.dead ? child : new Child(this.#directory, this.#twin);
      await this.#batch(child, batches.shift(), number('at-once'), batches);
    }
    await this.#close(child);
  }

  async #close(child) {
    const complaint = await child?.close();
    if (complaint)
      this.#complain(complaint);
  }

  async #batch(child, numbers, atOnce, batches) {
    const begun = new Set();
    const waiting = new Set(numbers);
    let left = null;
    const crash = await child.run({ seed: this.#seed, numbers, atOnce, patience: kPatience }, (message) => {
      left ??= message.left ?? null;
      if (message.begun !== undefined) {
        begun.add(message.begun);
      } else if (message.ended !== undefined) {
        begun.delete(message.ended);
        waiting.delete(message.ended);
        if (message.failure)
          this.#again.push({ id: message.ended, crash: message.failure });
        else
          this.passed++;
      }
    });
    if (left !== null && atOnce > 1) {
      // Which one was it?
      this.passed -= numbers.length;
      await child.close();
      const alone = new Child(this.#directory, this.#twin);
      const { passed } = this;
      await this.#batch(alone, numbers, 1, batches);
      await this.#close(alone);
      if (this.passed === passed + numbers.length)
        this.#complain(`programs ${numbers[0]} to ${numbers.at(-1)} of seed ${this.#seed}: ${left}`);
    }
    if (crash !== null) {
      // One of those has done it. The others get another process.
      const suspects = [...begun];
      const guilty = [];
      for (const id of suspects) {
        const failure = await this.#attempt(generate(this.#seed, id));
        if (failure)
          guilty.push({ id, crash: failure });
        else
          this.passed++;
        waiting.delete(id);
      }
      this.#again.push(...guilty);
      if (guilty.length === 0) {
        this.#complain(`one of the programs ${suspects.join(', ')} of seed ${this.#seed}, ` +
          `but none of them alone: ${crash}`);
      }
      if (waiting.size > 0)
        batches.push([...waiting]);
    }
  }

  #complain(text) {
    this.failed++;
    console.log(`not ok ${text}`);
  }

  // Runs a program some times, alone and with others of its kind. Null, or how
  // it fails; with a kind, only by that.
  async #attempt(program, kind, copies = number('copies')) {
    let failure = null;
    for (const atOnce of [1, number('at-once')]) {
      let child = new Child(this.#directory, this.#twin);
      const job = { program, copies: copies >> 1 || 1, atOnce, patience: kShortPatience };
      const crash = await child.run(job, ({ failure: f }) => {
        if (f && (kind === undefined || kindOf(f.message) === kind)) {
          failure ??= f;
          child?.kill();
        }
      });
      if (failure === null && crash !== null && (kind === undefined || kindOf(crash) === kind))
        failure = { message: crash };
      else if (crash === null)
        await child.close();
      child = null;
      if (failure)
        break;
    }
    return failure;
  }

  async #report(name, program, failure) {
    const kind = kindOf(failure.message);
    this.#complain(`${name}: ${failure.message}`);
    const shrunk = this.#shrunk.has(kind) || this.#shrunk.size >= kMostShrunk ? null :
      await this.#shrink(program, kind);
    this.#shrunk.add(kind);
    this.#show(shrunk?.failure ?? failure);
    if (shrunk) {
      console.log(`${shrunk.program.ops.length} of its ${program.ops.length} steps fail, too; try --program with`);
      console.log(format(shrunk.program));
    }
  }

  #show({ message, stack = message, trace }) {
    console.log(stack);
    if (trace && values.trace)
      console.log(trace.map((line) => `  | ${line}`).join('\n'));
  }

  // Null if it does not fail again.
  async #shrink(program, kind) {
    let failure = await this.#attempt(program, kind, 4 * number('copies'));
    if (failure === null)
      return null;
    const until = performance.now() + 1000 * number('shrink');
    const candidates = simpler(program);
    let next = candidates.next();
    while (!next.done && performance.now() < until) {
      const itsFailure = await this.#attempt(next.value, kind);
      if (itsFailure !== null) {
        program = next.value;
        failure = itsFailure;
      }
      next = candidates.next(itsFailure !== null);
    }
    return { program, failure };
  }

  async runOne(name, program) {
    const failure = await this.#attempt(program);
    if (failure === null)
      this.passed++;
    else
      await this.#report(name, program, failure);
  }
}

async function main() {
  if (values.help) {
    console.log(kUsage);
    return;
  }
  const seed = values.seed === undefined ? Date.now() % 2 ** 31 : number('seed');
  const model = new Model(seed);
  try {
    if (values.program !== undefined) {
      const { program } = values;
      await model.runOne('the program', JSON.parse(program.startsWith('{') ? program : fs.readFileSync(program, 'utf8')));
    } else if (values.only !== undefined) {
      await model.runOne(`program ${values.only} of seed ${seed}`, generate(seed, number('only')));
    } else {
      console.log(`seed ${seed}`);
      await model.runAll(number('programs'));
    }
  } finally {
    model.close();
  }
  console.log(`${model.passed} passed, ${model.failed} failed`);
  process.exitCode = model.failed > 0 ? 1 : 0;
}

main();
