'use strict';

// What a run has found, for people: a table in Markdown, plots in SVG.

const fs = require('node:fs');
const path = require('node:path');
const { recordRow, recordSizes, rows } = require('./rows.js');

const number = (value, digits) => (value === undefined ? '' : value.toFixed(digits));

// Of the figures that a row has, in this order.
const columns = [
  ['cost', 'CPU-s per GB', 2],
  ['rate', 'MB/s', 0],
  ['peak', 'peak memory, MiB', 0],
  ['calls', 'system calls per MB', 1],
  ['packetCost', 'CPU-s per million packets', 2],
  ['packetRate', 'packets/s', 0],
  ['packetCalls', 'system calls each', 2],
  ['connectionCost', 'CPU-ms each', 2],
  ['connectionRate', 'connections/s', 0],
  ['connectionCalls', 'system calls each', 1],
  ['ends', 'CPU-s per GB, both ends', 2],
  ['sender', 'of the sender', 2],
  ['receiver', 'of the receiver', 2],
  ['machine', 'of the machine', 2],
  ['gbits', 'Gbit/s', 2],
  ['retransmits', 'retransmissions', 0],
  ['others', 'machine used by others, %', 1, 100],
  ['loop', 'event loop used, %', 0, 100],
  ['delay', 'loop delay p99, ms', 1],
  ['average', 'average, us', 1],
  ['median', 'median, us', 1],
  ['p99', 'p99, us', 1],
  ['maximum', 'maximum, us', 1],
  ['noticed', 'noticed after, ms', 1],
  ['slowest', 'slowest to mean', 2],
  ['each', 'memory each, KiB', 1, 1 / 1024],
  ['trickle', 'after a trickle, KiB', 1, 1 / 1024],
  ['burst', 'after a burst, KiB', 1, 1 / 1024],
  ['held', 'memory each, KiB', 0, 1 / 1024],
  ['buffered', 'buffered at most, KiB', 0, 1 / 1024],
];

// In these rows other figures have no meaning.
const packets = ['packetCost', 'packetRate', 'packetCalls', 'peak', 'loop'];
const shown = {
  'short': ['connectionCost', 'connectionRate', 'connectionCalls'],
  'short-resumed': ['connectionCost', 'connectionRate', 'connectionCalls'],
  'idle': ['each'],
  'crowd': ['each', 'trickle', 'burst'],
  'stall-decrypt': ['held', 'buffered'],
  'stall-encrypt': ['held', 'buffered'],
  'ping-pong': ['median', 'p99', 'peak'],
  'delay': ['delay', 'loop'],
  'workers-delay': ['rate', 'delay', 'loop'],
  'tunnel-busy-ping': ['median', 'p99'],
  ...Object.fromEntries(Object.keys(rows).filter((name) => name.startsWith('many-'))
    .map((name) => [name, ['cost', 'rate', 'packetCost', 'packetRate', 'delay', 'loop']])),
  ...Object.fromEntries(['decrypt', 'encrypt'].map((way) => [`tunnel-busy-${way}`, ['packetCost', 'packetRate', 'loop']])),
  'tun-decrypt': packets,
  'tun-decrypt-paced': packets,
  'tun-encrypt': packets,
  'tun-encrypt-paced': packets,
  'udp-decrypt': packets,
  'udp-encrypt': packets,
};

function columnsOf(row, results) {
  const list = Object.values(results);
  return columns.filter(([name]) => {
    if (shown[row] ? !shown[row].includes(name) : ['held', 'buffered', 'delay'].includes(name))
      return false;
    if (name === 'slowest' && !row.startsWith('scale-'))
      return false;
    return list.some((figures) => figures[name] !== undefined);
  });
}

function table(head, body) {
  const line = (cells) => `| ${cells.join(' | ')} |`;
  return [line(head), `|${head.map((_, i) => (i ? '---:|' : '---|')).join('')}`, ...body.map(line)].join('\n');
}

function verdict({ met, binding, floor }, unit) {
  const notes = [];
  if (!met && floor !== undefined)
    notes.push(`the floor: ${number(floor, 2)}${unit}`);
  if (!binding)
    notes.push('does not bind');
  return (met ? 'met' : 'MISSED') + (notes.length ? ` (${notes.join('; ')})` : '');
}

// The figures that most people want: a line for each row, one column per contender.
const inBrief = ['decrypt', 'encrypt', 'small', 'duplex', 'tls-to-tls'];
const inBriefOf = ['splice', 'pipe', 'floor', 'nginx', 'haproxy', 'hitch', 'socat', 'stunnel'];

function brief({ about: { machine, versions, rounds }, medians, spreads }) {
  const cost = (row, name) => number(medians[row]?.[name]?.cost, 2);
  const spread = Math.max(0, ...inBrief.flatMap((row) => inBriefOf.map((name) => spreads[row]?.[name]?.cost ?? 0)));
  return [
    `CPU-seconds of the forwarding process per GB, medians of ${rounds} results that are at most ` +
    `${number(spread * 100, 0)} % apart, on one machine: ${machine.cpus} CPUs (${machine.cpu}), ` +
    `Linux ${machine.kernel}, node ${versions.node.replace(/^v/, '')}, openssl ${versions.openssl}, ` +
    `nginx ${versions.nginx}, TLS 1.3, loopback.`,
    table(['', ...inBriefOf.map((name) => ({ splice: '**spliced**', pipe: '`pipe()`' })[name] ?? name)],
          inBrief.map((row) => [rows[row].title, ...inBriefOf.map((name) => cost(row, name))])),
  ].join('\n\n');
}

// Puts it into a file, between its two marks.
function writeBrief(file, run) {
  if (!inBrief.every((row) => run.medians[row]))
    return;
  const [begin, end] = ['<!-- tools/bench/run --save -->', '<!-- end -->'];
  const old = fs.readFileSync(file, 'utf8');
  const from = old.indexOf(begin) + begin.length;
  fs.writeFileSync(file, `${old.slice(0, from)}\n${brief(run)}\n${old.slice(old.indexOf(end, from))}`);
}

// Behind the first figure of a row is how far the results are apart, see spreads() in bench.js.
function markdown({ about: { machine, versions, date, rounds, millis }, medians, spreads, targets }) {
  const parts = [
    `${date}, one machine: ${machine.cpus} CPUs (${machine.cpu}), ${machine.memory}, Linux ${machine.kernel}, ${machine.system}, ` +
    `load average before ${machine.load}; ` +
    Object.entries(versions).map(([name, version]) => `${name} ${version.replace(/^v/, '')}`).join(', ') +
    `; TLS 1.3, TLS_AES_256_GCM_SHA384, loopback; medians of ${rounds}, ${millis / 1000} s each.`,
  ];
  for (const [name, results] of Object.entries(medians)) {
    const list = columnsOf(name, results);
    const [first] = list[0];
    const spread = (contender) => spreads[name][contender][first];
    const head = ['', ...list.map(([, title]) => title)];
    const body = Object.entries(results).map(([contender, figures]) => [
      contender, ...list.map(([name, , digits, scale = 1]) =>
        number(figures[name] === undefined ? undefined : figures[name] * scale, digits)),
    ]);
    if (Object.keys(results).some((contender) => spread(contender) !== undefined)) {
      head.splice(2, 0, 'spread, %');
      for (const line of body)
        line.splice(2, 0, spread(line[0]) === undefined ? '' : number(spread(line[0]) * 100, 0));
    }
    parts.push(`### ${rows[name].title} (\`${name}\`)`, table(head, body));
  }
  if (targets.length) {
    parts.push('### Targets', table(['', 'measured', 'target', ''], targets.map(
      ({ what, value, limit, unit, atLeast, ...target }) => [
        what, number(value, 2) + unit, `${atLeast ? 'at least' : 'at most'} ${limit}${unit}`, verdict(target, unit),
      ])));
  }
  return parts.join('\n\n');
}

// Told apart by those who do not see colours as well: Okabe and Ito's.
const colours = {
  'floor': '#999999',
  'splice': '#d55e00',
  'splice-fd': '#e69f00',
  'pipe': '#0072b2',
  'pipeline': '#56b4e9',
  'nginx': '#009e73',
  'haproxy': '#cc79a7',
  'hitch': '#7a8f2a',
  'socat': '#8c6d46',
  'stunnel': '#5b5b8c',
};

const escape = (text) => String(text).replaceAll('&', '&amp;').replaceAll('<', '&lt;');

function text(x, y, content, more = '') {
  return `<text x="${x.toFixed(1)}" y="${y.toFixed(1)}" ${more}>${escape(content)}</text>`;
}

// A white ground, since the page that it is shown on may be dark.
function svg(width, height, body) {
  return [
    `<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 ${width} ${height}" width="${width}" height="${height}" ` +
    'font-family="sans-serif" font-size="12" fill="#222">',
    `<rect width="${width}" height="${height}" fill="#fff"/>`,
    ...body,
    '</svg>\n',
  ].join('\n');
}

// A group of bars for each row.
function bars(medians) {
  const groups = ['decrypt', 'encrypt', 'small', 'duplex', 'tls-to-tls'].filter((row) => medians[row]);
  const [left, barHeight, width] = [90, 15, 760];
  const body = [];
  let y = 28;
  for (const row of groups) {
    const list = Object.entries(medians[row]);
    const most = Math.max(...list.map(([, { cost }]) => cost));
    body.push(text(left, y, rows[row].title, 'font-weight="bold"'));
    y += 8;
    for (const [name, { cost }] of list) {
      const length = cost / most * (width - left - 60);
      body.push(text(left - 6, y + 11, name, 'text-anchor="end"'));
      body.push(`<rect x="${left}" y="${y}" width="${length.toFixed(1)}" height="${barHeight - 3}" ` +
                `fill="${colours[name]}"/>`);
      body.push(text(left + length + 5, y + 11, number(cost, 2)));
      y += barHeight;
    }
    y += 28;
  }
  body.push(text(left, y - 6, 'CPU-seconds of the forwarding process per GB; less is better', 'fill="#666"'));
  return svg(width, y + 8, body);
}

// A line for each contender, both axes logarithmic.
function lines(medians) {
  const sizes = recordSizes.filter((size) => medians[recordRow(size)]);
  const names = Object.keys(colours).filter((name) =>
    sizes.every((size) => medians[recordRow(size)][name]));
  const cost = (name, size) => medians[recordRow(size)][name].cost;
  const all = names.flatMap((name) => sizes.map((size) => cost(name, size)));
  const [low, high] = [Math.floor(Math.log2(Math.min(...all))), Math.ceil(Math.log2(Math.max(...all)))];
  const [left, right, top, bottom, width, height] = [50, 80, 20, 50, 760, 420];
  const span = Math.log2(sizes.at(-1) / sizes[0]);
  const x = (size) => left + Math.log2(size / sizes[0]) / span * (width - left - right);
  const y = (value) => top + (high - Math.log2(value)) / (high - low) * (height - top - bottom);
  const body = [];
  for (let power = low; power <= high; power++) {
    const at = y(2 ** power);
    body.push(`<path d="M${left} ${at.toFixed(1)}H${width - right}" stroke="#ddd"/>`);
    body.push(text(left - 6, at + 4, 2 ** power, 'text-anchor="end"'));
  }
  for (const size of sizes)
    body.push(text(x(size), height - bottom + 18, size, 'text-anchor="middle"'));
  // Names must not cover each other.
  let free = -Infinity;
  for (const name of names.toSorted((a, b) => cost(b, sizes.at(-1)) - cost(a, sizes.at(-1)))) {
    const points = sizes.map((size) => `${x(size).toFixed(1)},${y(cost(name, size)).toFixed(1)}`);
    body.push(`<polyline points="${points.join(' ')}" fill="none" stroke="${colours[name]}" stroke-width="2"/>`);
    free = Math.max(free + 14, y(cost(name, sizes.at(-1))) + 4);
    body.push(text(width - right + 6, free, name, `style="fill:${colours[name]}"`));
  }
  body.push(text(left, height - 12, 'CPU-seconds of the forwarding process per GB (decrypt), over bytes per record',
                 'style="fill:#666"'));
  return svg(width, height, body);
}

function save(dir, run) {
  const write = (name, content) => fs.writeFileSync(path.join(dir, name), content);
  write('results.json', `${JSON.stringify(run, (_, value) =>
    (typeof value === 'number' ? Number(value.toPrecision(5)) : value), 1)}\n`);
  write('table.md', `${markdown(run.about, run.medians, run.targets)}\n`);
  if (run.medians.decrypt)
    write('cost.svg', bars(run.medians));
  if (recordSizes.every((size) => run.medians[recordRow(size)]))
    write('records.svg', lines(run.medians));
}

module.exports = { markdown, save, writeBrief };
