'use strict';

// The process in which programs run, some of them at once. It is told which,
// and tells when each begins and how it ends.

const fs = require('fs');
const { generate } = require('./program');
const { Sockets } = require('./sockets');
const { World } = require('./world');

const { 2: directory } = process.argv;
const sockets = new Sockets(directory, {
  key: fs.readFileSync(`${directory}/key.pem`),
  cert: fs.readFileSync(`${directory}/cert.pem`),
});

// Ticks of the watchdog are counted, and not time, so that a process that is not
// scheduled does not look as if it did nothing.
const kTick = 250;
const running = new Map();

setInterval(() => {
  process.send({ alive: true });
  for (const watched of running.values()) {
    const { world } = watched;
    if (world.progress !== watched.progress) {
      watched.progress = world.progress;
      watched.ticks = 0;
    } else if (++watched.ticks * kTick >= watched.patience) {
      world.hang();
    }
  }
}, kTick);

process.on('uncaughtException', (err) => {
  process.send({ crashed: `uncaught ${err.stack ?? err}` }, () => process.exit(1));
});

// The answers to what is asked of the twin, which the parent has.
const answers = new Map();

function errorOfTwin(options) {
  const id = JSON.stringify(options);
  if (!answers.has(id)) {
    answers.set(id, Promise.withResolvers());
    process.send({ twin: { id, options } });
  }
  return answers.get(id).promise;
}

// What is open, by kind: descriptors, and splices that the event loop knows of.
function open() {
  const counts = {};
  const count = (name) => counts[name] = (counts[name] ?? 0) + 1;
  for (const fd of fs.readdirSync('/proc/self/fd')) {
    try {
      count(fs.readlinkSync(`/proc/self/fd/${fd}`).replace(/\d+/g, '#'));
    } catch {
      // That of the folder itself
    }
  }
  process.getActiveResourcesInfo().filter((name) => name === 'TLSSPLICE').forEach(count);
  return counts;
}

let openBefore;
let failures = 0;

// What programs have left behind, or null.
async function leftovers() {
  if (failures > 0)
    return null;
  for (let i = 0; i < 10; i++)
    await new Promise(setImmediate);
  const now = open();
  const more = Object.keys(now).filter((name) => now[name] > (openBefore[name] ?? 0));
  return more.length === 0 ? null :
    `leaves open: ${more.map((name) => `${name} ${now[name] - (openBefore[name] ?? 0)} times`).join(', ')}`;
}

async function one(id, program, { patience, atOnce }) {
  const world = new World(program, sockets, errorOfTwin);
  const watched = { world, progress: -1, ticks: 0, patience };
  running.set(id, watched);
  process.send({ begun: id });
  let failure = null;
  try {
    await world.run();
    const left = atOnce === 1 ? await leftovers() : null;
    if (left !== null)
      failure = { message: left, trace: world.trace };
  } catch (err) {
    failure = { message: err.message, stack: err.stack, trace: world.trace };
  }
  failures += failure !== null;
  running.delete(id);
  process.send({ ended: id, failure });
}

process.on('message', async (job) => {
  const { quit, twin, seed, numbers, program, copies, atOnce } = job;
  if (quit)
    process.exit();
  if (twin) {
    answers.get(twin.id).resolve(twin.code);
    return;
  }
  openBefore ??= await sockets.listen().then(open);
  const programs = program ? Array.from({ length: copies }, (_, id) => [id, program]).values() :
    numbers.values().map((id) => [id, generate(seed, id)]);
  const work = async () => {
    for (const { 0: id, 1: program } of programs)
      await one(id, program, job);
  };
  await Promise.all(Array.from({ length: atOnce }, work));
  process.send({ done: true, left: await leftovers() });
});

process.on('disconnect', () => process.exit());
