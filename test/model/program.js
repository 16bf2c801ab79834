'use strict';

// A program: what the sockets are like, and a list of what is done to them. It
// is made from a seed and a number, written as JSON, and can be made shorter.
//
// Whoever does something is the first letter of its name: (p)eer, the TLS peer;
// (s)plice socket, the TLSSocket that is spliced; (e)ndpoint; (f)ar, the other
// side of the endpoint.

// mulberry32: small, and enough to choose with.
class Random {
  #state;

  constructor(seed, number) {
    this.#state = (Math.imul(seed, 0x9e3779b1) ^ Math.imul(number + 1, 0x85ebca6b)) >>> 0;
  }

  next() {
    this.#state = (this.#state + 0x6d2b79f5) | 0;
    let t = Math.imul(this.#state ^ (this.#state >>> 15), 1 | this.#state);
    t = (t + Math.imul(t ^ (t >>> 7), 61 | t)) ^ t;
    return ((t ^ (t >>> 14)) >>> 0) / 2 ** 32;
  }

  below(n) {
    return Math.floor(this.next() * n);
  }

  chance(p) {
    return this.next() < p;
  }

  pick(list) {
    return list[this.below(list.length)];
  }
}

// The first value of each is the plainest; what is shrunk gets it if it can.
const kConfig = {
  version: ['TLSv1.3', 'TLSv1.2'],
  // Which side is spliced: a server's or client's socket, or one that a
  // tls.Server has made.
  role: ['server', 'client', 'listener'],
  // What is below the TLS; js is a Duplex in JavaScript.
  under: ['tcp', 'unix', 'tls', 'js'],
  // How JavaScript reads the socket.
  reader: ['data', 'readable'],
  endpoint: ['unix', 'tcp', 'fifo', 'tls'],
  // How the endpoint is given to the splice. FIFOs that are streams go one way
  // each; only FIFOs can be FileHandles.
  by: ['stream', 'fd', 'file'],
  // Whether the program starts before the endpoint is connected, which only a stream can
  // wait for.
  connecting: [false, true],
  halfOpen: [true, false],
  endpointHalfOpen: [true, false],
  // Of an endpoint that is a TLSSocket
  endpointVersion: ['TLSv1.3', 'TLSv1.2'],
  endpointRole: ['server', 'client', 'listener'],
  endpointUnder: ['tcp', 'unix', 'tls', 'js'],
  // setMaxSendFragment() of both sides
  fragment: [0, 512, 4096],
  // Whether the program starts before the handshake is done.
  early: [false, true],
  endpointEarly: [false, true],
  // Whether a listener to 'error' is there, or `finished` is looked at.
  listen: ['events', 'finished'],
  // How all of it ends: each splice is stopped, or runs until both sides have
  // ended, or the socket is destroyed.
  finish: ['stop', 'end', 'destroy'],
};

const kHighWaterMarks = [262144, 1, 1000, 16384, 70000, 2 ** 30];

const kFaults = [
  'peer destroy', 'peer destroy reading', 'peer reset', 'peer garbage',
  'far destroy', 'far destroy reading', 'far reset', 'far garbage',
  'endpoint destroy', 'endpoint destroy error', 'endpoint refused', 'socket destroy', 'socket destroy error',
];

function size(random) {
  return 1 + random.below(random.pick([10, 2000, 16500, 40000, 200000, 200000, 900000]));
}

function startOptions(random) {
  return {
    direction: random.pick(['duplex', 'in', 'out']),
    end: random.chance(0.6),
    autoClose: random.chance(0.1),
    highWaterMark: random.chance(0.4) ? 0 : random.pick(kHighWaterMarks),
    signal: random.chance(0.15),
    pipe: random.chance(0.1),
    head: random.chance(0.2),
  };
}

// What is found behind the bytes of the peer.
const kInjections = [
  'bad record', 'bad record', 'bad record, FIN', 'garbage', 'fatal alert', 'empty records',
  'RST', 'RST', 'FIN', 'cut record, FIN', 'close_notify', 'user_canceled', 'user_canceled, FIN',
];

// Listeners to what streams and splices emit, to the signal of a splice ('splice abort'), and to
// the diagnostics channels ('splice start', 'splice fail', 'splice end').
const kHooks = [
  'socket data', 'socket data', 'socket end', 'socket error', 'socket close', 'socket written',
  'socket readable', 'socket drain', 'socket finish', 'socket timeout',
  'endpoint data', 'endpoint end', 'endpoint error', 'endpoint close',
  'endpoint drain', 'endpoint finish', 'endpoint timeout',
  'splice error', 'splice close', 'splice abort', 'splice start', 'splice fail', 'splice end',
];

// What OpenSSL calls.
const kCallbacks = ['keylog', 'secure', 'session'];

// What is done in a listener, and to what.
function hook(random, events = kHooks) {
  if (random.chance(0.1)) {
    const { 0: callback, 1: op } = inside(random);
    return ['on', `socket ${callback}`, op];
  }
  const event = random.pick(events);
  return ['on', event, random.pick([
    ['stop', random.below(2), false],
    ['stop', random.below(2), false],
    ['abort', random.below(2)],
    ['start', { ...startOptions(random), pipe: false }],
    ['s.pause'],
    ['s.unshift'],
    ['s.unlisten'],
    ['e.unlisten'],
    ['s.write', size(random)],
    ['p.write', size(random)],
    ['f.write', size(random)],
    ['s.empty', 3],
    ['fault', random.pick(['socket destroy', 'endpoint destroy', 'far destroy'])],
    ['e.connect'],
    ...(event === 'splice close' ? [['s.end', false], ['e.end', false]] : []),
  ])];
}

// --- What a program begins with ----------------------------------------------
//
// What random steps would seldom come to, and then goes on with such. Each may
// change the configuration.

function plain(random, direction, options = {}) {
  return ['start', { ...startOptions(random), direction, autoClose: false, pipe: false, ...options }];
}

function wait(random) {
  return random.chance(0.5) ? ['quiet'] : ['turns', 1 + random.below(10)];
}

// One handle, or two in either order.
function bothWays(random) {
  if (random.chance(0.4))
    return [plain(random, 'duplex')];
  const { 0: first, 1: second } = random.chance(0.7) ? ['in', 'out'] : ['out', 'in'];
  return [
    plain(random, first),
    ...(random.chance(0.3) ? [['turns', 1 + random.below(3)]] : []),
    plain(random, second),
  ];
}

// There is something to be delivered in the first turn.
function firstTurn(random) {
  return [['s.pause'], ['p.write', 1 + random.below(60000)], ['turns', 3 + random.below(5)]];
}

// How a splice with a sink that takes nothing ends. What it gives back is read by
// JavaScript, which may do something about it.
function breakOff(random) {
  const fails = ['fault', random.pick([
    'far destroy', 'far destroy', 'far reset', 'far garbage', 'endpoint destroy', 'endpoint destroy error',
  ])];
  const end = random.pick([
    ['stop', 0, true], ['stop', 0, false], ['abort', 0], ['f.resume'], ['turns', 1], fails, fails, fails,
    ['fault', 'socket destroy'],
  ]);
  const hooks = [];
  if (random.chance(0.4)) {
    hooks.push(['on', random.pick(['socket data', 'socket data', 'socket error', 'splice error']), random.pick([
      ['stop', 0, false], ['stop', 0, false], ['abort', 0], plain(random, random.pick(['in', 'out', 'duplex'])),
      ['fault', 'socket destroy'],
    ])]);
  }
  return [...hooks, end];
}

const kBeginnings = [
  // The sink is full before the first turn.
  [10, (random) => {
    const ops = [['fill', random.chance(0.2)], ...random.pick([
      bothWays(random), [plain(random, 'in')], [['start', startOptions(random)]],
    ])];
    ops.splice(random.chance(0.3) ? 1 : ops.length, 0, ['p.write', size(random)]);
    if (random.chance(0.5))
      ops.push(['f.write', size(random)]);
    const wait0 = wait(random);
    if (random.chance(0.5))
      ops.push(random.chance(0.5) ? ['p.hold'] : wait0, ['p.write', size(random)], ['p.inject', random.pick(kInjections)]);
    ops.push(wait0);
    return [...ops, ...breakOff(random)];
  }],
  // Behind bytes that are held there is an error of TLS.
  [6, (random) => [
    ['fill', random.chance(0.1)],
    ...(random.chance(0.5) ? bothWays(random) : [plain(random, 'in')]),
    ...(random.chance(0.7) ? [['p.hold']] : []),
    ['p.write', 1 + random.below(60000)],
    ['p.inject', random.pick(['bad record', 'bad record, FIN', 'garbage', 'fatal alert', 'empty records'])],
    ['turns', 3 + random.below(10)],
    ...breakOff(random),
  ]],
  // Or a reset.
  [5, (random, config) => {
    config.under = random.pick(['tcp', 'tcp', 'js', 'tls']);
    return [
      ['fill', random.chance(0.1)],
      ...(random.chance(0.5) ? firstTurn(random) : []),
      ...bothWays(random),
      ['p.write', 1 + random.below(60000)],
      ['turns', 3 + random.below(10)],
      ...(random.chance(0.5) ? [['f.write', size(random)]] : []),
      ['p.inject', 'RST'],
      ['turns', 1 + random.below(10)],
      ...(random.chance(0.3) ? breakOff(random) : []),
    ];
  }],
  // Or a reset, and the splice stops when it has just read what it cannot send any more.
  [6, (random, config) => {
    config.under = random.pick(['tcp', 'tcp', 'tcp', 'js']);
    config.endpoint = random.pick(['tls', 'tls', 'tls', 'unix']);
    config.endpointUnder = random.pick(['tls', 'js', 'unix']);
    config.by = 'stream';
    config.finish = random.pick(['stop', 'stop', 'end']);
    const send = () => ['f.write', 20_000 + random.below(100_000)];
    return [
      ['fill', random.chance(0.1)],
      ...(random.chance(0.6) ? [plain(random, 'duplex')] : bothWays(random)),
      ['p.write', 1 + random.below(60000)],
      ['turns', 3 + random.below(10)],
      ...(random.chance(0.5) ? [send()] : []),
      ['p.inject', 'RST'],
      send(),
      ['turns', 1 + random.below(3)],
      ['stop', 0, false],
      ...(random.chance(0.5) ? [['stop', 1, false]] : []),
    ];
  }],
  // Or another splice takes the bytes at once, and what is behind them.
  [5, (random, config) => {
    const injection = random.pick(['bad record', 'bad record, FIN', 'garbage', 'fatal alert', 'RST']);
    if (injection === 'RST')
      config.under = random.pick(['tcp', 'tcp', 'js', 'tls']);
    const isAlone = random.chance(0.6);
    return [
      ['fill', random.chance(0.1)],
      ...(isAlone ? [plain(random, 'in')] : bothWays(random)),
      ...(random.chance(0.7) && injection !== 'RST' ? [['p.hold']] : []),
      ['p.write', 1 + random.below(60000)],
      ...(injection === 'RST' ? [['turns', 3 + random.below(10)]] : []),
      ['p.inject', injection],
      ['turns', 3 + random.below(10)],
      ...(random.chance(0.3) ? [['f.write', size(random)], ['turns', 1 + random.below(5)]] : []),
      ...(random.chance(0.8) ? [['s.pause']] : []),
      ['stop', 0, true],
      ...(isAlone || random.chance(0.5) ? [] : [['stop', 0, true]]),
      plain(random, random.pick(['in', 'in', 'duplex']), { highWaterMark: 0 }),
      ...(random.chance(0.5) ? [['f.resume']] : []),
    ];
  }],
  // Both sides of a TLS connection end it during the handshake, in either order.
  [5, (random, config) => {
    config.finish = 'end';
    const isEndpoint = random.chance(0.4);
    const ends = isEndpoint ? [['e.cutOff'], ['fault', 'far FIN']] : [['s.cutOff'], ['fault', 'peer FIN']];
    if (isEndpoint) {
      config.endpoint = 'tls';
      config.by = 'stream';
      config.endpointEarly = true;
      config.endpointUnder = random.pick(['tcp', 'unix']);
      config.endpointRole = random.pick(['server', 'client']);
    } else {
      config.early = true;
      config.under = random.pick(['tcp', 'unix']);
      config.role = random.pick(['server', 'client']);
    }
    if (random.chance(0.5))
      ends.reverse();
    if (random.chance(0.5))
      ends.splice(1, 0, ['turns', 1 + random.below(10)]);
    return [
      ['fault', isEndpoint ? 'far mute' : 'peer mute'],
      plain(random, random.pick(['in', 'out', 'duplex']), { pipe: random.chance(0.3) }),
      ...(random.chance(0.5) ? [['turns', 1 + random.below(5)]] : []),
      ...ends,
    ];
  }],
  // The TLS below fails before a splice starts, or while that waits for JavaScript's
  // writes to be sent.
  [4, (random, config) => {
    config.under = 'tls';
    config.finish = 'end';
    if (random.chance(0.5))
      return [['fault', 'peer garbage below'], ['turns', 5 + random.below(10)], ...bothWays(random)];
    return [
      ['p.pause'],
      ...Array.from({ length: 16 }, () => ['s.write', 900_000]),
      ['turns', 1 + random.below(10)],
      plain(random, random.pick(['out', 'out', 'duplex'])),
      ['turns', 1 + random.below(10)],
      ['fault', 'peer garbage below'],
      ['turns', 1 + random.below(10)],
    ];
  }],
  // A reset behind close_notify, before or after something is sent.
  [4, (random, config) => {
    config.under = 'tcp';
    return [
      ...(random.chance(0.5) ? [['p.write', size(random)], ['quiet']] : []),
      plain(random, random.pick(['out', 'out', 'out', 'duplex', 'in'])),
      ['p.inject', 'close_notify'],
      ['quiet'],
      ['fault', 'peer reset behind the end'],
      wait(random),
      ...(random.chance(0.7) ? [['f.write', size(random)], ['turns', 1 + random.below(5)], ['f.write', size(random)]] : []),
      wait(random),
    ];
  }],
  // An endpoint is reset that was full before the first turn.
  [2, (random) => [
    ['fill', false],
    ['p.write', 500_000 + random.below(500_000)],
    plain(random, 'duplex'),
    wait(random),
    ['fault', random.pick(['far reset', 'far destroy'])],
  ]],
  // More than is to be held, over a stream that does not belong to libuv.
  [4, (random, config) => {
    config.under = random.pick(['js', 'tls']);
    return [
      ['fill', random.chance(0.1)],
      ...(random.chance(0.7) ? firstTurn(random) : []),
      plain(random, random.pick(['in', 'duplex']), { highWaterMark: random.pick([0, 1000, 16384, 70000]) }),
      ['p.flood', 2],
      ['quiet'],
      ...(random.chance(0.5) ? breakOff(random) : []),
    ];
  }],
  // Empty writes beside what fails, or while there is much to send.
  [4, (random) => [
    ...(random.chance(0.5) ? bothWays(random) : [plain(random, 'out')]),
    ...(random.chance(0.7) ? [['f.write', size(random)]] : []),
    ['s.empty', 30],
    ['turns', 1 + random.below(5)],
    ['fault', random.pick(['peer reset', 'peer reset', 'peer destroy', 'socket destroy'])],
    ...(random.chance(0.3) ? [['f.write', size(random)]] : []),
  ]],
  [2, (random, config) => {
    config.under = random.pick(['tcp', 'js', 'tls', 'tls']);
    return [
      ...(random.chance(0.5) ? bothWays(random) : [plain(random, 'out')]),
      ['f.write', size(random)],
      ['f.write', size(random)],
      ['s.empty', 0],
    ];
  }],
  // A peer that does not read, and a splice that is stopped then.
  [2, (random) => [
    ['p.pause'],
    plain(random, random.pick(['out', 'duplex'])),
    ['f.write', 900_000],
    ['f.write', 900_000],
    ['f.write', 900_000],
    ['f.write', 900_000],
    ['quiet'],
    ['stop', 0, true],
    ...(random.chance(0.3) ? [['s.write', size(random)]] : []),
  ]],
  // What has been read goes back just before a splice takes it.
  [3, (random, config) => {
    config.reader = random.pick(['readable', 'readable', 'data']);
    return [
      ...(random.chance(0.7) ? [['s.pause']] : []),
      ['p.write', size(random)],
      ...(random.chance(0.3) ? [['p.end']] : []),
      ['turns', 2 + random.below(5)],
      ['s.unshift'],
      plain(random, random.pick(['in', 'duplex'])),
      ...(random.chance(0.5) ? [['turns', 1 + random.below(5)]] : []),
      ['stop', 0, random.chance(0.5)],
      ...(random.chance(0.5) ? [['s.resume']] : []),
      ['p.write', size(random)],
    ];
  }],
  // JavaScript has read a head, which the splice gets as such.
  [4, (random, config) => {
    config.reader = 'readable';
    return [
      ...(random.chance(0.3) ? [['fill', random.chance(0.1)]] : []),
      ['s.pause'],
      ['p.write', size(random)],
      ['turns', 2 + random.below(5)],
      plain(random, random.pick(['in', 'duplex']), { head: true, pipe: random.chance(0.1) }),
      ['p.write', size(random)],
      wait(random),
      ...(random.chance(0.7) ? breakOff(random) : []),
    ];
  }],
  // The endpoint is connected, or is not, some time after the splice has started.
  [8, (random, config) => {
    config.endpoint = 'tcp';
    config.by = 'stream';
    config.connecting = true;
    const ends = [
      ['stop', 0, random.chance(0.5)], ['abort', 0], ['fault', 'endpoint refused'],
      ['fault', 'endpoint destroy'], ['fault', 'endpoint destroy error'], ['fault', 'socket destroy'],
      ['s.end', false], ['p.end'], ['p.inject', random.pick(kInjections)],
    ];
    return [
      ...(random.chance(0.3) ? [['e.write', size(random)]] : []),
      ...(random.chance(0.3) ? firstTurn(random) : []),
      ...bothWays(random),
      ...(random.chance(0.7) ? [['p.write', size(random)]] : []),
      ...(random.chance(0.3) ? [['p.flood', 1]] : []),
      wait(random),
      ...(random.chance(0.6) ? [random.pick(ends)] : []),
      ...(random.chance(0.5) ? [['turns', 1 + random.below(5)]] : []),
      ['e.connect'],
      ...(random.chance(0.4) ? [random.pick(ends)] : []),
    ];
  }],
  // An end with a warning before it.
  [2, (random) => [
    ...bothWays(random),
    ['p.write', size(random)],
    ['p.inject', random.pick(['user_canceled', 'user_canceled, FIN'])],
    wait(random),
  ]],
  // The listeners of all are removed.
  [2, (random, config) => {
    config.early = random.chance(0.5);
    return [
      ...bothWays(random),
      [random.pick(['s.unlisten', 'e.unlisten'])],
      ['p.write', size(random)],
      ['f.write', size(random)],
      wait(random),
      ...random.pick([[['p.inject', random.pick(kInjections)]], breakOff(random)]),
    ];
  }],
  // Most programs are about one splice, or about none to begin with.
  [28, (random) => [['start', startOptions(random)]]],
  [27, () => []],
];

function beginning(random, config) {
  let at = random.next() * kBeginnings.reduce((sum, { 0: weight }) => sum + weight, 0);
  const begin = kBeginnings.find(({ 0: weight }) => (at -= weight) < 0)[1];
  return begin(random, config);
}

// What is done in a callback of OpenSSL's, and in which.
function inside(random) {
  return [random.pick(kCallbacks), random.pick([
    ['stop', random.below(2), false],
    ['abort', random.below(2)],
    ['start', { ...startOptions(random), pipe: false }],
    ['s.end', false],
    ['e.end', false],
    ['s.pause'],
    ['e.pause'],
    ['p.write', size(random)],
    ['f.write', size(random)],
    ['fault', random.pick(['socket destroy', 'endpoint destroy', 'far destroy'])],
  ])];
}

// Hooks early in a program, and what makes it likely that they are called.
function addHooks(random, ops) {
  for (let i = 1 + random.below(3); i > 0; i--) {
    const op = hook(random);
    const { 1: event } = op;
    const at = random.below((ops.length >> 1) + 1);
    ops.splice(at, 0, op);
    if (event === 'socket drain')
      ops.splice(at + 1, 0, ['s.write', 100_000 + random.below(400_000)]);
    else if (event === 'endpoint drain')
      ops.splice(at + 1, 0, ['e.write', 100_000 + random.below(400_000)]);
    else if (event === 'splice abort')
      addAbort(random, ops);
  }
}

function addAbort(random, ops) {
  for (const { 0: name, 1: options } of ops) {
    if (name === 'start')
      options.signal = true;
  }
  ops.push(['abort', random.below(2)]);
}

// KeyUpdates of the peer, and of the far side of a TLSSocket, anywhere in a program:
// only TLS 1.3 has them, and not during a handshake.
function addKeyUpdates(random, config, ops) {
  const sides = [];
  if (!config.early) {
    config.version = 'TLSv1.3';
    sides.push('p.keyUpdate', 'p.keyUpdate');
  }
  if (config.endpoint === 'tls' && config.endpointUnder !== 'tls' && !config.endpointEarly) {
    config.endpointVersion = 'TLSv1.3';
    sides.push('f.keyUpdate');
  }
  if (sides.length === 0)
    return;
  for (let i = 1 + random.below(random.pick([2, 6])); i > 0; i--) {
    const isRequest = random.chance(0.6);
    const op = [random.pick(sides), isRequest, isRequest && random.chance(0.5)];
    // Just before what is injected, too.
    const injection = ops.findIndex(({ 0: name }) => name === 'p.inject');
    ops.splice(injection >= 0 && random.chance(0.3) ? injection : random.below(ops.length + 1), 0, op);
  }
}

// What can be done, and how often it is, next to the others.
const kOps = [
  [14, 'p.write', (random) => [size(random)]],
  [14, 'f.write', (random) => [size(random)]],
  [5, 's.write', (random) => [size(random)]],
  [3, 'e.write', (random) => [size(random)]],
  [1, 'p.end'],
  [1, 'f.end'],
  [0.4, 's.end', (random) => [random.chance(0.5)]],
  [0.3, 'e.end', (random) => [random.chance(0.5)]],
  [1, 's.cork'],
  [1, 's.uncork'],
  [1.2, 'e.cork'],
  [1.2, 'e.uncork'],
  [3, 'p.pause'],
  [3, 'p.resume'],
  [3, 'f.pause'],
  [3, 'f.resume'],
  [2, 's.pause'],
  [2, 's.resume'],
  [1, 'e.pause'],
  [1, 'e.resume'],
  [14, 'start', (random) => [startOptions(random)]],
  [7, 'stop', (random) => [random.below(2), random.chance(0.5)]],
  [1, 'abort', (random) => [random.below(2)]],
  [0.7, 'closeFd'],
  [1, 'e.connect'],
  [1.5, 'renegotiate', (random) => [random.below(2), ...(random.chance(0.5) ? inside(random) : [null, null]),
                                    random.chance(0.3)]],
  [1, 's.unshift'],
  [0.5, 's.unlisten'],
  [0.5, 'e.unlisten'],
  [1.5, 's.empty', (random) => [random.pick([0, 5, 30, 300])]],
  [0.4, 'spliceBelow'],
  [0.5, 'fill', (random) => [random.chance(0.3)]],
  [2, 'on', (random) => hook(random).slice(1)],
  [10, 'turns', (random) => [1 + random.below(random.pick([2, 5, 30]))]],
  [4, 'quiet'],
  [2, 'ref', (random) => [random.below(2)]],
];
const kWeight = kOps.reduce((sum, op) => sum + op[0], 0);

function randomOp(random) {
  let at = random.next() * kWeight;
  for (const { 0: weight, 1: name, 2: args } of kOps) {
    at -= weight;
    if (at < 0)
      return [name, ...(args ? args(random) : [])];
  }
  return ['turns', 1];
}

// OpenSSL's own client as the peer, since Node's does no KeyUpdate.
function keyUpdates(random) {
  const ops = [];
  for (let i = 6 + random.below(20); i > 0; i--) {
    const op = random.chance(0.3) ? ['keyUpdate', random.chance(0.5)] : randomOp(random);
    // What is left in the source has to be read.
    if (op[0] === 'start')
      op[1].autoClose = false;
    if (/^([pf]\.(write|pause|resume)|start|stop|turns|quiet|keyUpdate|ref)$/.test(op[0]))
      ops.push(op);
  }
  return {
    config: {
      ...plainest(),
      role: 'listener',
      endpoint: random.pick(['unix', 'tcp', 'tls']),
      endpointVersion: random.pick(kConfig.endpointVersion),
      openssl: true,
    },
    ops,
  };
}

function plainest() {
  const config = {};
  for (const [name, values] of Object.entries(kConfig))
    config[name] = values[0];
  return config;
}

function generate(seed, number) {
  const random = new Random(seed, number);
  // One in 100: a process is slow.
  if (number % 100 === 99)
    return keyUpdates(random);
  const config = {};
  for (const [name, values] of Object.entries(kConfig))
    config[name] = random.pick(values);
  if (random.chance(0.25))
    config.endpoint = 'tls';
  if (config.endpoint === 'tls')
    config.by = 'stream';
  if (config.endpoint !== 'fifo' && config.by === 'file')
    config.by = 'fd';
  config.connecting = random.chance(0.2);
  config.early = random.chance(0.15);
  config.endpointEarly = random.chance(0.15);
  config.fragment = random.chance(0.8) ? 0 : config.fragment;
  config.endpointHalfOpen = random.chance(0.8);
  config.halfOpen = random.chance(0.7);
  const ops = beginning(random, config);
  // What such a beginning has done is to come out.
  const isSpecial = ops.length > 1;
  for (let i = (isSpecial ? 0 : 5) + random.below(random.pick(isSpecial ? [5, 10, 30] : [10, 60])); i > 0; i--)
    ops.push(randomOp(random));
  if (random.chance(0.1) && !ops.some(({ 0: name }) => name === 'p.inject'))
    ops.splice(random.below(ops.length + 1), 0, ['p.inject', random.pick(kInjections)]);
  if (random.chance(isSpecial ? 0.1 : 0.45)) {
    const at = random.below(ops.length + 1);
    const kind = random.pick(kFaults);
    ops.splice(at, 0, ['fault', kind, ...(kind.endsWith('reading') ? [1 + random.below(8)] : [])]);
  }
  if (random.chance(0.25))
    addHooks(random, ops);
  // An injector makes the peer's stream one of JavaScript, on which Node's handshake
  // bears little else.
  if (ops.some(({ 0: name }) => name === 'p.inject' || name === 'p.hold'))
    config.early = false;
  if (random.chance(0.2))
    addKeyUpdates(random, config, ops);
  // Records of a byte each take their time.
  if (ops.some(({ 0: name, 1: options }) => name === 'start' && options.highWaterMark === 1)) {
    for (const op of ops) {
      if (op[0].endsWith('.write'))
        op[1] = Math.min(op[1], 20000);
      else if (op[0] === 'p.flood')
        op.splice(0, 2, 'p.write', 20000);
    }
  }
  return { config, ops };
}

// Yields programs that are a bit simpler, and is told of each (by next())
// whether it will do. Then it goes on from there.
function* simpler(program) {
  for (let changed = true; changed;) {
    changed = false;
    for (let length = program.ops.length; length > 0; length >>= 1) {
      for (let at = 0; at < program.ops.length;) {
        const shorter = { ...program, ops: program.ops.toSpliced(at, length) };
        if (yield shorter) {
          program = shorter;
          changed = true;
        } else {
          at += length;
        }
      }
    }
    for (const [name, values] of Object.entries(kConfig)) {
      for (const value of values.slice(0, values.indexOf(program.config[name]))) {
        const plainer = { ...program, config: { ...program.config, [name]: value } };
        if (yield plainer) {
          program = plainer;
          changed = true;
          break;
        }
      }
    }
    for (let i = 0; i < program.ops.length; i++) {
      for (const op of simplerOps(program.ops[i])) {
        const plainer = { ...program, ops: program.ops.with(i, op) };
        if (yield plainer) {
          program = plainer;
          changed = true;
          i--;
          break;
        }
      }
    }
  }
}

const kPlainStart = {
  direction: 'duplex', end: true, autoClose: false, highWaterMark: 0, signal: false, pipe: false, head: false,
};

function* simplerOps([name, ...args]) {
  if (name === 'start') {
    const { 0: options } = args;
    for (const [option, value] of Object.entries(kPlainStart)) {
      if (options[option] !== value)
        yield [name, { ...options, [option]: value }];
    }
  } else if (name === 'turns' || name.endsWith('.write')) {
    const { 0: n } = args;
    for (const less of new Set([1, n >> 4, n >> 1, n - (n >> 3)])) {
      if (less > 0 && less < n)
        yield [name, less];
    }
  } else if (name.endsWith('.end') && args[0]) {
    yield [name, false];
  } else if (name === 'stop') {
    if (args[1])
      yield [name, args[0], false];
    if (args[0])
      yield [name, 0, args[1]];
  } else if (name === 'quiet') {
    yield ['turns', 30];
  } else if (name === 'p.flood') {
    yield ['p.write', 500_000];
  } else if (name === 's.empty') {
    for (const less of [3, 30]) {
      if (!args[0] || less < args[0])
        yield [name, less];
    }
  } else if (name === 'fill' && args[0]) {
    yield [name, false];
  } else if (name === 'p.inject' && args[0] !== 'bad record') {
    yield [name, args[0].endsWith('FIN') && args[0] !== 'FIN' ? args[0].slice(0, -5) : 'bad record'];
  } else if (name.endsWith('.keyUpdate')) {
    if (args[1])
      yield [name, args[0], false];
    if (args[0])
      yield [name, false, false];
  } else if (name === 'on') {
    yield args[1];
    for (const op of simplerOps(args[1]))
      yield [name, args[0], op];
  } else if (name === 'renegotiate') {
    if (args[3])
      yield [name, ...args.slice(0, 3)];
    if (args[1]) {
      yield [name, args[0]];
      for (const op of simplerOps(args[2]))
        yield [name, args[0], args[1], op, args[3]];
    }
  }
}

// One op a line.
function format({ config, ops }) {
  const lines = ops.map((op) => `    ${JSON.stringify(op)}`);
  return `{"config": ${JSON.stringify(config)},\n  "ops": [\n${lines.join(',\n')}\n]}`;
}

module.exports = { format, generate, simpler };
