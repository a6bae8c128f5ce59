// Evaluates a declarative Jenkinsfile with Groovy's own parser, the one that Jenkins uses, and prints what it holds as JSON.
// Arguments: the file, and the build's parameters as a JSON object.
// It is no Jenkins: a word of the pipeline that is not known below is an error, as is one in a place where it may not be.
import groovy.json.JsonOutput
import groovy.json.JsonSlurper

class Words {
  static final Map<String, List<String>> WITHIN = [
    pipeline   : ['agent', 'parameters', 'options', 'environment', 'stages', 'post'],
    agent      : ['label'],
    parameters : ['string'],
    options    : ['timeout', 'disableConcurrentBuilds', 'buildDiscarder', 'logRotator'],
    environment: ['credentials'],
    stages     : ['stage'],
    stage      : ['options', 'steps'],
    steps      : ['sh'],
    post       : ['always', 'cleanup'],
    always     : ['sh', 'junit', 'archiveArtifacts'],
    cleanup    : ['sh'],
  ]
}

class Place {
  String word
  List path
  List found
  Map params  // what is given, and the defaults of the others
  Map env = System.getenv()

  def invokeMethod(String name, Object arguments) {
    if (!Words.WITHIN[word]?.contains(name)) throw new IllegalArgumentException("${word} has no ${name}")
    def given = arguments as List
    def body = given && given.last() instanceof Closure ? given.pop() : null
    if (name == 'string') params.putIfAbsent(given[0].name, given[0].defaultValue)
    found << [path: path, word: name, arguments: given.collect { it instanceof Map ? it : it.toString() }]
    if (body) {
      body.delegate = new Place(word: name, path: path + [given ? given[0].toString() : name], found: found, params: params)
      body.resolveStrategy = Closure.DELEGATE_FIRST
      body.call()
    }
    return name
  }

  void setProperty(String name, Object value) {
    if (word != 'environment') throw new IllegalArgumentException("${word} sets ${name}")
    found << [path: path, word: name, arguments: [value.toString()]]
  }
}

def found = []
def script = new GroovyShell().parse(new File(args[0]))
script.metaClass.pipeline = { Closure body ->
  body.delegate = new Place(word: 'pipeline', path: [], found: found, params: new JsonSlurper().parseText(args[1]))
  body.resolveStrategy = Closure.DELEGATE_FIRST
  body.call()
}
script.run()
println JsonOutput.toJson(found)
