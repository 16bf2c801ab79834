// Whoever imports appium-ios-tuntap gets the functions of appium-forwarder.js, without being changed:
//
//   node --import ./appium-preload.mjs PROGRAM

import { registerHooks } from 'node:module';
import forwarder from './appium-forwarder.js';

export * from 'appium-ios-tuntap';
export const { TunnelForwarder, connectToTunnelLockdown, connectToTunnelPsk } = forwarder;

// What these two files import themselves has been resolved by now.
registerHooks({
  resolve(specifier, context, nextResolve) {
    if (specifier === 'appium-ios-tuntap')
      return { url: import.meta.url, shortCircuit: true };
    return nextResolve(specifier, context);
  },
});
