import java.nio.file.Path;
import java.util.Map;
import java.util.Set;
import java.util.concurrent.CountDownLatch;
import java.util.concurrent.TimeUnit;
import org.elasticsearch.common.logging.LogConfigurator;
import org.elasticsearch.common.settings.Settings;
import org.elasticsearch.node.InternalSettingsPreparer;
import org.elasticsearch.node.Node;
import org.elasticsearch.plugins.PluginBundle;
import org.elasticsearch.plugins.PluginsLoader;

/** Starts one Elasticsearch node from the jars alone, with the modules under es.path.home/modules. TERM closes it. */
public class EsNode {
  public static void main(String[] args) throws Exception {
    LogConfigurator.configureESLogging();
    String home = System.getProperty("es.path.home");
    var env = InternalSettingsPreparer.prepareEnvironment(
        Settings.builder().put("path.home", home).build(), Map.of(), Path.of(System.getProperty("es.path.conf")), () -> "node-1");
    // the last argument: the server's classes are on the class path, not in a named module
    var loader = PluginsLoader.createPluginsLoader(modules(env.modulesDir()), Set.of(), Map.of(), false);
    var node = new Node(env, loader);
    Runtime.getRuntime().addShutdownHook(new Thread(() -> {
      try {
        node.prepareForClose();
        node.close();
        node.awaitClose(10, TimeUnit.SECONDS);
      } catch (Exception e) {
        e.printStackTrace();
      }
    }));
    node.start();
    new CountDownLatch(1).await();
  }

  /** Its method has one parameter in 8.19, and a second one in 9. */
  @SuppressWarnings("unchecked")
  private static Set<PluginBundle> modules(Path folder) throws Exception {
    for (var method : PluginsLoader.class.getMethods()) {
      if (method.getName().equals("loadModulesBundles")) {
        return (Set<PluginBundle>) (method.getParameterCount() == 1 ? method.invoke(null, folder) : method.invoke(null, folder, false));
      }
    }
    throw new NoSuchMethodException("loadModulesBundles");
  }
}
