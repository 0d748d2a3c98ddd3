// Every text of the pages. {name} stands for a value.
export const TEXTS = {
  // All pages
  brand: 'tusd-py',
  pages: 'Pages',
  uploadLink: 'Upload',
  recordLink: 'Record',
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
  speed: '{rate}/s',
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

  // Record
  recordTitle: 'Record – tusd-py',
  recordHeading: 'Record',
  recordIntroduction:
    'A recording is written to this device and sent to the server while it grows. It goes on while the server or the' +
    ' network is away, and is sent later.',
  newRecording: 'New recording',
  kind: 'What to record',
  sound: 'Sound',
  soundAndPicture: 'Sound and picture',
  preview: 'Picture of the camera',
  record: 'Record',
  stop: 'Stop',
  level: 'Level of the sound',
  recordingNow: 'Recording.',
  stopped: 'The recording has ended. What is left is sent to the server.',
  allSent: 'The recording is on the server.',
  recordingName: 'recording {day} {time}.{extension}',
  recordingsHeading: 'Recordings on this device',
  progressOf: 'Part of {name} that is on the server',
  about: '{action}: {name}',
  sizes: '{size} recorded, {sent} on the server.',
  stateDone: 'All {size} are on the server. The copy on this device is kept for a day.',
  stateAway: 'The server cannot be reached; this device keeps everything and tries again.',
  stateToken: 'The server asks for a token; this device keeps everything.',
  stateRefused: 'The server refuses it: {reason}. This device keeps everything and tries again.',
  stateMemory:
    '{size} are in the memory of this page only, since the browser has no room: save a copy, and leave the page open.',
  saveCopy: 'Save a copy',
  play: 'Play',
  openOnServer: 'Open on the server',
  discard: 'Discard',
  discardUnsent: 'The server does not have all of {name}. Discard the copy on this device all the same?',
  notAllowed: 'The browser does not let this page use the microphone or the camera.',
  noMicrophone: 'There is no microphone or camera.',
  cannotRecord: 'This browser records on pages with https and on this machine only.',
  noDeferredLength: 'This server takes no uploads whose length is not known, as a recording is.',
  safetyHeading: 'What cannot be lost',
  safety:
    'Each second is on the disk of this device before it is sent. After a reload or a crash of the browser, open this' +
    ' page again: what was recorded is sent to its end. A copy can be saved at any time, also while recording.',
}
