// How Node writes JavaScript, for the files that go into its lib/ and test/. Debian's source package lacks Node's own
// configuration, and the rules that Node has written for itself; a pull request there runs those.

import js from '@eslint/js';
import stylistic from '@stylistic/eslint-plugin';

// What a built-in module must take from `primordials`, since users may change the global.
const primordials = [
  'AggregateError', 'Array', 'ArrayBuffer', 'BigInt', 'BigInt64Array', 'BigUint64Array', 'Boolean', 'DataView', 'Date',
  'Error', 'EvalError', 'FinalizationRegistry', 'Float32Array', 'Float64Array', 'Function', 'Infinity', 'Int16Array',
  'Int32Array', 'Int8Array', 'JSON', 'Map', 'Math', 'NaN', 'Number', 'Object', 'Promise', 'Proxy', 'RangeError',
  'ReferenceError', 'Reflect', 'RegExp', 'Set', 'String', 'Symbol', 'SyntaxError', 'TypeError', 'URIError',
  'Uint16Array', 'Uint32Array', 'Uint8Array', 'Uint8ClampedArray', 'WeakMap', 'WeakRef', 'WeakSet', 'isFinite', 'isNaN',
  'parseFloat', 'parseInt',
];

// What a built-in module must require: there the globals come later, or from another realm.
const required = [
  'AbortController', 'AbortSignal', 'Buffer', 'Event', 'EventTarget', 'URL', 'clearImmediate', 'clearInterval',
  'clearTimeout', 'console', 'queueMicrotask', 'setImmediate', 'setInterval', 'setTimeout', 'structuredClone',
];

const readonly = (names) => Object.fromEntries(names.map((name) => [name, 'readonly']));

const rules = {
  'accessor-pairs': 'error',
  'array-callback-return': 'error',
  'default-case-last': 'error',
  'dot-notation': 'error',
  'eqeqeq': ['error', 'smart'],
  'func-name-matching': 'error',
  'func-style': ['error', 'declaration', { allowArrowFunctions: true }],
  'no-constant-condition': ['error', { checkLoops: false }],
  'no-duplicate-imports': 'error',
  'no-else-return': 'error',
  'no-empty': ['error', { allowEmptyCatch: true }],
  'no-extra-bind': 'error',
  'no-lonely-if': 'error',
  'no-new-wrappers': 'error',
  'no-proto': 'error',
  'no-restricted-syntax': ['error', {
    selector: "CallExpression[callee.name='setTimeout'][arguments.length<2]",
    message: '`setTimeout()` takes at least two arguments.',
  }, {
    selector: 'ThrowStatement > CallExpression[callee.name=/Error$/]',
    message: 'Use `new` to throw an error.',
  }, {
    selector: "CallExpression[callee.object.name='assert'][callee.property.name=/^(equal|notEqual|deepEqual)$/]",
    message: 'Use the strict assertion.',
  }],
  'no-self-compare': 'error',
  'no-template-curly-in-string': 'error',
  'no-unneeded-ternary': 'error',
  'no-unused-expressions': ['error', { allowShortCircuit: true, allowTernary: true }],
  'no-unused-vars': ['error', { args: 'none', caughtErrors: 'all' }],
  'no-use-before-define': ['error', { classes: true, functions: false, variables: false }],
  'no-useless-call': 'error',
  'no-useless-concat': 'error',
  'no-useless-constructor': 'error',
  'no-var': 'error',
  'no-void': 'error',
  'object-shorthand': 'error',
  'one-var': ['error', { initialized: 'never' }],
  'prefer-const': ['error', { ignoreReadBeforeAssign: true }],
  'prefer-object-has-own': 'error',
  'strict': ['error', 'global'],
  'symbol-description': 'error',

  '@stylistic/arrow-parens': 'error',
  '@stylistic/arrow-spacing': 'error',
  '@stylistic/block-spacing': 'error',
  '@stylistic/brace-style': ['error', '1tbs', { allowSingleLine: true }],
  '@stylistic/comma-dangle': ['error', {
    arrays: 'always-multiline',
    exports: 'always-multiline',
    functions: 'only-multiline',
    imports: 'always-multiline',
    objects: 'only-multiline',
  }],
  '@stylistic/comma-spacing': 'error',
  '@stylistic/comma-style': 'error',
  '@stylistic/computed-property-spacing': 'error',
  '@stylistic/dot-location': ['error', 'property'],
  '@stylistic/eol-last': 'error',
  '@stylistic/function-call-spacing': 'error',
  '@stylistic/indent': ['error', 2, {
    ArrayExpression: 'first',
    CallExpression: { arguments: 'first' },
    FunctionDeclaration: { parameters: 'first' },
    FunctionExpression: { parameters: 'first' },
    MemberExpression: 'off',
    ObjectExpression: 'first',
    SwitchCase: 0,
  }],
  '@stylistic/key-spacing': 'error',
  '@stylistic/keyword-spacing': 'error',
  '@stylistic/linebreak-style': 'error',
  '@stylistic/max-len': ['error', {
    code: 120,
    ignorePattern: '^// Flags:',
    ignoreRegExpLiterals: true,
    ignoreTemplateLiterals: true,
    ignoreUrls: true,
    tabWidth: 2,
  }],
  '@stylistic/new-parens': 'error',
  '@stylistic/no-confusing-arrow': 'error',
  '@stylistic/no-extra-parens': ['error', 'functions'],
  '@stylistic/no-extra-semi': 'error',
  '@stylistic/no-floating-decimal': 'error',
  '@stylistic/no-mixed-spaces-and-tabs': 'error',
  '@stylistic/no-multi-spaces': ['error', { ignoreEOLComments: true }],
  '@stylistic/no-multiple-empty-lines': ['error', { max: 2, maxBOF: 0, maxEOF: 0 }],
  '@stylistic/no-tabs': 'error',
  '@stylistic/no-trailing-spaces': 'error',
  '@stylistic/no-whitespace-before-property': 'error',
  '@stylistic/object-curly-newline': 'error',
  '@stylistic/object-curly-spacing': ['error', 'always'],
  '@stylistic/one-var-declaration-per-line': 'error',
  '@stylistic/operator-linebreak': ['error', 'after', { overrides: { '?': 'ignore', ':': 'ignore' } }],
  '@stylistic/padding-line-between-statements': ['error', { blankLine: 'always', prev: 'function', next: 'function' }],
  '@stylistic/quote-props': ['error', 'consistent'],
  '@stylistic/quotes': ['error', 'single', { avoidEscape: true, allowTemplateLiterals: 'always' }],
  '@stylistic/rest-spread-spacing': 'error',
  '@stylistic/semi': 'error',
  '@stylistic/semi-spacing': 'error',
  '@stylistic/space-before-blocks': 'error',
  '@stylistic/space-before-function-paren': ['error', { anonymous: 'never', named: 'never', asyncArrow: 'always' }],
  '@stylistic/space-in-parens': 'error',
  '@stylistic/space-infix-ops': 'error',
  '@stylistic/space-unary-ops': 'error',
  '@stylistic/spaced-comment': ['error', 'always', { block: { balanced: true }, exceptions: ['-'] }],
  '@stylistic/template-curly-spacing': 'error',
};

export default [
  js.configs.recommended,
  {
    linterOptions: { reportUnusedDisableDirectives: 'error' },
    plugins: { '@stylistic': stylistic },
    languageOptions: {
      ecmaVersion: 'latest',
      sourceType: 'commonjs',
      globals: readonly([...required, 'process', 'performance', 'WebAssembly']),
    },
    rules,
  },
  {
    files: ['lib/**/*.js'],
    languageOptions: { globals: readonly(['internalBinding', 'primordials']) },
    rules: {
      'no-restricted-globals': [
        'error',
        ...primordials.map((name) => ({ name, message: 'Take it from `primordials`.' })),
        ...required.map((name) => ({ name, message: 'Require the module that has it.' })),
      ],
      'prefer-rest-params': 'error',
    },
  },
  {
    files: ['test/**/*.js', 'benchmark/**/*.js', 'tools/**/*.js'],
    languageOptions: { globals: readonly(['__dirname', '__filename', 'fetch', 'gc', 'navigator']) },
  },
];
