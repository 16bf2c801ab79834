'use strict';

// usage: out/node test/types/members.js >FILE.ts
// Prints what compiles only if the declarations have the members that a splice has, no fewer and no more.

const fs = require('fs');
const tls = require('tls');
const { Duplex } = require('stream');

const socket = new tls.TLSSocket(new Duplex({ read() {}, write() {} }), {});
const splice = socket.spliceTo({ fd: fs.openSync('/dev/null', 'r+') });

function members(keys) {
  const lines = [...keys].filter((key) => typeof key === 'string').map((key) => `  ${key}: true,\n`);
  return `{\n${lines.join('')}}`;
}

const own = new Set(Object.getOwnPropertyNames(tls.TLSSplice.prototype));
own.delete('constructor');
console.log(`\
import tls = require('node:tls');
import type { EventEmitter } from 'node:events';

const stats: Record<keyof tls.TLSSpliceStats, true> = ${members(Object.keys(splice.stats))};
const own: Record<Exclude<keyof tls.TLSSplice, keyof EventEmitter | symbol>, true> = ${members(own)};
export { own, stats };`);
process.exit();
