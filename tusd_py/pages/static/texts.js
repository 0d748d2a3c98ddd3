// Every text of the pages. {name} stands for a value.
export const TEXTS = {
  // All pages
  brand: 'tusd-py',
  pages: 'Pages',
  uploadLink: 'Upload',
  token: 'Token',
  tokenNeeded: 'The server asks for a token.',
  tokenHint: 'It stays in the memory of this page.',
  useToken: 'Use token',
  unreachable: 'The server cannot be reached. Trying again …',
  of: '{part} of {whole}',

  // Upload
  uploadTitle: 'Upload – tusd-py',
  uploadHeading: 'Upload',
  uploadIntroduction:
    'Files go to this server in pieces of any size, and an upload that was interrupted goes on where it stopped.',
  uploadLimit: 'Files of at most {size}.',
  parallel: 'Send large files in {count} parts at the same time',
  testFile: 'Try it with a test file of {size}',
  testFileName: 'test file {number}.bin',
  speed: '{rate}/s, {time} left',
  speedOnly: '{rate}/s',
  uploadAway: 'The server cannot be reached. Trying again every few seconds; the upload goes on where it stopped.',
  uploadGoesOn: 'The server is back, and the upload goes on.',
  uploadRestored: 'The upload that the page was left with goes on.',
  uploadGhosts: 'Choose the same files again: their uploads go on where they stopped.',
  uploadFailed: '{name}: {reason}',
  uploadDone: '{name} is uploaded.',
  finishedHeading: 'Finished',
  plugHeading: 'Pull the plug',
  plugSteps:
    'While an upload runs, kill the server, reload this page, or close the browser. Start the server again and come' +
    ' back: every byte that the server acknowledged is there, and only the rest is sent.',
  noReason: 'the server did not say why',
}
